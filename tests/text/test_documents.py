from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.chaos.poisoned import GOOD, POISONED_FILES, POISONED_LINES, Poisoned, PoisonedFile
from pangu_sigma.errors import DataError
from pangu_sigma.text import documents
from pangu_sigma.text.documents import Document, Rejected, check_input, read_jsonl


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def line(**record: object) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode()


def test_good_lines_become_documents_in_order(tmp_path, domains):
    file = write(
        tmp_path / "a.jsonl",
        b"\xef\xbb\xbf" + line(domain="zh", text="你好"),
        b"",
        line(domain="bilingual", text={"en": "hello", "zh": "你好"}, extra=1),
        line(domain="bilingual", text="你好 hello"),
    )
    items = list(read_jsonl(file, domains))
    assert [(item.domain, item.text) for item in items] == [
        ("zh", "你好"),
        ("bilingual", (("en", "hello"), ("zh", "你好"))),
        ("bilingual", "你好 hello"),
    ]
    assert items[1].bytes == 5 + 6
    assert items[0].segments == (("", "你好"),)


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        (b'{"domain": "zh", "text": "\xff"}', "not UTF-8", "byte 26"),
        (
            "你".encode("gb18030"),
            "not UTF-8",
            "convert it with `iconv -f … -t UTF-8`, or name a compressed file *.jsonl.gz",
        ),
        (b'{"domain": "zh", ', "not JSON", "column"),
        (b"{", "not JSON", "a line holds a whole object, as `jq -c .` writes it"),
        (b" [", "not JSON", "`jq -c '.[]' FILE > lines.jsonl` makes lines of an array"),
        (b"[" * 100_000, "not JSON", "recursion"),
        (b'["zh"]', "not a JSON object", "a list; `jq -c '.[]' FILE > lines.jsonl` makes lines of an array"),
        (b"3", "not a JSON object", "the line holds a number"),
        (
            line(text="x", Domain="zh"),
            "domain missing or not a string",
            "no key 'domain'; the keys are 'text', 'Domain'",
        ),
        (line(text="x", domain=3), "domain missing or not a string", "3"),
        (line(text="x", domain="fr"), "unknown domain", "'fr'; the configuration has zh, en, bilingual, code"),
        (line(domain="zh"), "text missing or not a string", "no key 'text'; the keys are 'domain'"),
        (line(domain="zh", text=None), "text missing or not a string", "text is null or missing"),
        (line(domain="zh", text=1), "text missing or not a string", "text is a number"),
        (line(domain="zh", text={"zh": "x"}), "text missing or not a string", "text is an object"),
        (line(domain="zh", text=" \n\u3000"), "empty text", "text"),
        (line(domain="bilingual", text={"zh": "你", "en": ""}), "empty text", "text.en"),
        (line(domain="bilingual", text={"zh": "你", "fr": "x"}), "wrong sides", "fr"),
        (line(domain="bilingual", text={}), "wrong sides", "zh, en"),
        (b'{"domain": "zh", "text": "ab\\ud800"}', "not Unicode text", "character 2"),
    ],
)
def test_bad_lines_are_rejected_with_their_place(tmp_path, domains, bad, reason, detail):
    good = line(domain="zh", text="好")
    items = list(read_jsonl(write(tmp_path / "a.jsonl", good, bad, good), domains))
    assert [type(item) for item in items] == [Document, Rejected, Document]
    rejected = items[1]
    assert (rejected.file, rejected.line, rejected.offset) == (str(tmp_path / "a.jsonl"), 2, len(good) + 1)
    assert rejected.reason == reason
    assert detail in rejected.detail


def test_a_cut_gzip_file_gives_its_whole_lines_and_says_where_it_breaks(tmp_path, domains):
    lines = [line(domain="zh", text=f"{i}" * 200 + str(hash(i))) for i in range(2_000)]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(lines))[:-400])
    *documents, rejected = read_jsonl(path, domains)
    assert 0 < len(documents) < 2_000
    assert all(isinstance(item, Document) for item in documents)
    assert rejected.reason == "broken gzip stream"
    assert rejected.offset == sum(len(text) + 1 for text in lines[: len(documents)])
    assert rejected.line == len(documents) + 1
    path.write_bytes(b"not gzip")
    (rejected,) = read_jsonl(path, domains)
    assert rejected.reason == "broken gzip stream"
    assert rejected.detail.endswith("; if it is not compressed, name the file *.jsonl")


def test_files_that_cannot_be_read_are_one_error(tmp_path, domains):
    with pytest.raises(DataError, match=r"input .*none\.jsonl: cannot be read: No such file"):
        list(read_jsonl(tmp_path / "none.jsonl", domains))
    with pytest.raises(DataError, match=r"must end in \.jsonl or \.jsonl\.gz"):
        list(read_jsonl(write(tmp_path / "a.txt"), domains))


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_any_bytes_are_either_documents_or_rejected(tmp_path_factory, domains, chunks):
    path = tmp_path_factory.mktemp("bytes") / "a.jsonl"
    path.write_bytes(b"\n".join(chunks))
    for item in read_jsonl(path, domains):
        assert isinstance(item, Rejected)
        assert item.offset <= len(path.read_bytes())


@pytest.mark.parametrize("case", POISONED_LINES, ids=lambda case: case.name)
def test_a_poisoned_line_is_quarantined_with_its_place_and_nothing_else_is(tmp_path, domains, case: Poisoned):
    path = write(tmp_path / "a.jsonl", GOOD, case.line, GOOD)
    before, item, after = read_jsonl(path, domains)
    assert isinstance(before, Document)
    assert isinstance(after, Document)
    assert (item.file, item.offset, item.reason) == (str(path), len(GOOD) + 1, case.reason)
    assert 0 < len(item.detail) < 300


@pytest.mark.parametrize("case", POISONED_FILES, ids=lambda case: case.name)
def test_a_poisoned_file_is_quarantined_or_refused(tmp_path, domains, case: PoisonedFile):
    path = tmp_path / case.file
    path.write_bytes(case.content)
    if case.error:
        with pytest.raises(DataError, match=f"input .*{case.error}"):
            list(read_jsonl(path, domains))
    else:
        *good, last = read_jsonl(path, domains)
        assert all(isinstance(item, Document) for item in good)
        assert (type(last), last.reason) == (Rejected, case.reason)


def test_there_are_a_hundred_poisoned_inputs():
    assert len(POISONED_LINES) + len(POISONED_FILES) >= 100
    assert len({case.name for case in [*POISONED_LINES, *POISONED_FILES]}) == len(POISONED_LINES) + len(POISONED_FILES)


@given(st.integers(0, 10_000), st.binary(max_size=3))
def test_a_changed_line_is_rejected_or_gives_what_json_says(tmp_path_factory, domains, at, change):
    good = line(domain="bilingual", text={"en": "hello", "zh": "你好"}, id=[1, {"a": 2}])
    at %= len(good)
    path = tmp_path_factory.mktemp("changed") / "a.jsonl"
    path.write_bytes(good[:at] + change + good[at + len(change) :])
    for item in read_jsonl(path, domains):
        if isinstance(item, Document):
            record = json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
            text = record["text"]
            assert item.domain == record["domain"]
            assert item.text == (tuple(text.items()) if isinstance(text, dict) else text)


def test_a_line_without_end_is_skipped_in_bounded_memory(tmp_path, domains, monkeypatch):
    monkeypatch.setattr(documents, "MAX_LINE_BYTES", 1_000)
    monkeypatch.setattr(documents, "_SKIP_BYTES", 64)
    long = line(domain="zh", text="好" * 1_000)
    items = list(read_jsonl(write(tmp_path / "a.jsonl", GOOD, long, GOOD, long), domains))
    assert [getattr(item, "reason", "") for item in items] == ["", "line too long", "", "line too long"]
    assert items[1].offset == len(GOOD) + 1
    assert [items[1].line, items[3].line] == [2, 4], "a long line is one line"
    assert items[3].offset == 2 * (len(GOOD) + 1) + len(long) + 1
    assert f"{len(long) + 1:,} bytes" in items[1].detail


def test_progress_is_told_every_byte(tmp_path, domains):
    path, told = write(tmp_path / "a.jsonl", GOOD, b"", b"{", GOOD), []
    list(read_jsonl(path, domains, told.append))
    assert sum(told) == path.stat().st_size


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "socket"])
def test_what_is_no_file_is_refused_without_being_opened(tmp_path, domains, kind):
    path = tmp_path / "a.jsonl"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "socket":
            import socket

            socket.socket(socket.AF_UNIX).bind(str(path))
    for read in (check_input, lambda path: list(read_jsonl(path, domains))):
        with pytest.raises(DataError, match=f"input {path}: is not a file but a folder, a pipe or a device"):
            read(path)


def test_a_name_that_no_file_can_have_is_one_error():
    with pytest.raises(DataError, match=r"input a.* cannot be read"):
        check_input(Path("a\0.jsonl"))


def test_a_disk_that_fails_is_one_error(tmp_path, domains, monkeypatch):
    class Failing(io.BytesIO):
        def readline(self, _=-1):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(documents, "_open", lambda _: Failing())
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read at byte 0: .*Input/output error"):
        list(read_jsonl(write(tmp_path / "a.jsonl", GOOD), domains))
