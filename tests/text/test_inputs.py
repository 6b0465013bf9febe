from __future__ import annotations

import logging
import os
import pickle
import socket
from pathlib import Path

import pytest
from helpers.poisoned_files import CASES, MANY
from helpers.record_files import NAMES, WHOLE, read_whole, write_records
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.errors import DataError
from pangu_sigma.text.documents import Document, Rejected
from pangu_sigma.text.inputs import INPUTS, LINES, InputUnit, check_input, input_files, input_units, read_unit
from pangu_sigma.text.layout import Layout

RECORDS = [{"domain": ("zh", "en", "fr")[i % 3], "text": f"第{i}章 " * (i % 7), "id": i} for i in range(60)]
"""Good ones, some of an unknown domain, some of an empty text."""


def facts(items: list[Document | Rejected]) -> list[tuple[object, ...]]:
    return [
        (item.domain, item.text) if isinstance(item, Document) else (item.reason, item.line, item.offset)
        for item in items
    ]


def expected() -> list[tuple[str, ...]]:
    """What the records are, without a reader: the domain and the text, or why not."""
    found = []
    for record in RECORDS:
        if record["domain"] == "fr":
            found.append(("unknown domain",))
        elif not record["text"]:
            found.append(("empty text",))
        else:
            found.append((record["domain"], record["text"]))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_records(tmp_path, domains, name):
    items = read_whole(write_records(tmp_path / name, RECORDS), domains)
    assert [
        fact[: 2 if isinstance(item, Document) else 1] for item, fact in zip(items, facts(items), strict=True)
    ] == expected()
    assert [item.line for item in items if isinstance(item, Rejected)] == [
        number for number, fact in enumerate(expected(), 1) if len(fact) == 1
    ]


@settings(max_examples=60)
@given(st.integers(1, 5_000), st.sampled_from(NAMES), st.integers(1, 60), st.randoms())
def test_units_in_any_order_are_the_whole(tmp_path_factory, domains, size, name, row_group, random):
    """Units are read in a random order, each from its pickled bytes; then numbers of lines are added up as the pipeline does."""
    path = write_records(tmp_path_factory.mktemp("units") / name, RECORDS, row_group)
    units = input_units([path], size)
    assert len(units) == 1 or path.suffix in (".jsonl", ".parquet")
    results: dict[InputUnit, tuple[list[Document | Rejected], int]] = {}
    for unit in random.sample(units, len(units)):
        items: list[Document | Rejected] = []
        reader = read_unit(pickle.loads(pickle.dumps(unit)), Layout(), domains)
        while True:
            try:
                items.append(next(reader))
            except StopIteration as end:
                results[unit] = (items, end.value)
                break
    found, before = [], 0
    for unit in units:
        items, lines = results[unit]
        found += [
            fact if isinstance(item, Document) else (fact[0], before + item.line, fact[2])
            for item, fact in zip(items, facts(items), strict=True)
        ]
        before += lines
    assert found == facts(read_whole(path, domains))
    assert before == len(RECORDS)


def test_units_depend_on_the_size_alone(tmp_path):
    path = write_records(tmp_path / "a.jsonl", RECORDS)
    assert input_units([path], 100) == input_units([path], 100)
    assert input_units([path], WHOLE) == [InputUnit(path, 0, path.stat().st_size)]
    assert len(input_units([path], 1)) == len(RECORDS)
    many = [write_records(tmp_path / name, RECORDS) for name in NAMES]
    assert [unit.path for unit in input_units(many, WHOLE)] == many


@pytest.mark.parametrize("name", CASES)
def test_a_poisoned_file_is_counted_with_its_place_or_refused(tmp_path, domains, name):
    case = CASES[name]
    path = tmp_path / case.name
    path.write_bytes(case.content)
    if case.error:
        with pytest.raises(DataError, match=f"{path}.*{case.error}"):
            read_whole(path, domains)
        return
    items = read_whole(path, domains)
    documents = [item for item in items if isinstance(item, Document)]
    (bad,) = [item for item in items if isinstance(item, Rejected)]
    assert (bad.file, bad.reason) == (str(path), case.reason)
    assert 0 < len(bad.detail) < 300
    if case.cut_from:
        assert bad.line == len(documents) + 1 < len(MANY)
        assert case.cut_from[bad.offset :].lstrip(b"[,\n").startswith(MANY[len(documents)])
    else:
        assert (len(documents), bad.line, bad.offset) == (case.documents, case.line, case.offset)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz", "a.parquet"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "socket", "nothing", "loop", "in a file"])
def test_what_is_no_file_is_one_error(tmp_path, domains, name, kind):
    path = tmp_path / name
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "socket":
            socket.socket(socket.AF_UNIX).bind(str(path))
        case "loop":
            path.symlink_to(path)
        case "in a file":
            (tmp_path / "file").touch()
            path = tmp_path / "file" / name
    for read in (lambda: input_units([path], 9), lambda: list(read_unit(InputUnit(path, 0, 9), Layout(), domains))):
        with pytest.raises(DataError, match=rf"input {path}: (is not a file but|cannot be read: )"):
            read()


def test_a_file_that_may_not_be_read_is_one_error(tmp_path, monkeypatch):
    """The system's answer is imitated: root, who may run the tests, may read everything."""
    paths = [write_records(tmp_path / name, RECORDS) for name in NAMES]

    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    for path in paths:
        with pytest.raises(DataError, match="cannot be read: Permission denied"):
            input_units([path], 9)


def test_a_folder_means_its_files_in_order_and_says_what_it_leaves_out(tmp_path, caplog):
    for name in ("b/2.jsonl", "b/1.parquet", "a.json", "b.json.zst", "b/.git/x.jsonl", ".hidden.json", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.json")
    (tmp_path / "linked").symlink_to(tmp_path / "b")
    (tmp_path / "c.jsonl.d").mkdir()
    with caplog.at_level(logging.INFO):
        found = input_files([tmp_path / "b.json.zst", tmp_path])
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["b.json.zst", "a.json", "b/1.parquet", "b/2.jsonl", "b.json.zst", "link.jsonl"]
    assert f"{tmp_path}: 5 files are read" in caplog.text
    assert (
        f"{tmp_path}: not read are .hidden.json, README.md, b/.git, linked; names of text end in .jsonl, "
        in caplog.text
    )
    with pytest.raises(DataError, match=r"c\.jsonl\.d: no file below it ends in \.jsonl, "):
        input_files([tmp_path / "c.jsonl.d"])
    os.mkfifo(tmp_path / "z.jsonl")
    with pytest.raises(DataError, match=r"z\.jsonl: is not a file but a folder, a pipe or a device"):
        input_files([tmp_path])


def test_names_say_the_format(tmp_path, domains):
    with pytest.raises(DataError, match=r"input .*none\.jsonl: cannot be read: No such file"):
        check_input(tmp_path / "none.jsonl")
    for name in ("a.txt", "a.json", "a.jsonl.bz2", "a.JSONL", "a.tar", "jsonl", "a.json~"):
        with pytest.raises(DataError, match=r"must end in \.jsonl, \.jsonl\.gz, \.jsonl\.zst$"):
            check_input(tmp_path / name)
    with pytest.raises(DataError, match=r"must end in \.jsonl, .*, \.parquet$"):
        check_input(tmp_path / "a.parquet.gz", suffixes=INPUTS)


@pytest.mark.parametrize(
    ("name", "content", "suffixes", "fix"),
    [
        ("gz.jsonl", b"\x1f\x8b..", INPUTS, r"a \.gz file; end its name in \.jsonl\.gz, \.json\.gz$"),
        ("gz.jsonl", b"\x1f\x8b..", LINES, r"a \.gz file; end its name in \.jsonl\.gz$"),
        ("a.json", b"PAR1", INPUTS, r"a \.parquet file; end its name in \.parquet$"),
        ("a.jsonl", b"PAR1", LINES, r"a \.parquet file; convert it to \.jsonl$"),
    ],
)
def test_content_of_another_format_is_told_the_names_that_are_read(tmp_path, name, content, suffixes, fix):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=fix):
        check_input(tmp_path / name, suffixes=suffixes)


def test_a_name_that_no_file_can_have_is_one_error():
    with pytest.raises(DataError, match=r"input a.* cannot be read"):
        check_input(Path("a\0.jsonl"))
