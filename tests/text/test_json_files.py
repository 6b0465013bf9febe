from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers.record_files import packed, read_whole
from hypothesis import given
from hypothesis import strategies as st

from experiments.chaos.poisoned import GOOD, POISONED_LINES
from pangu_sigma.errors import DataError
from pangu_sigma.text import json_files
from pangu_sigma.text.documents import Document, Rejected, RejectedLine, Row, items_of
from pangu_sigma.text.json_files import json_array, json_lines, line_ends


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_stream_is_the_bytes_before_compression(tmp_path, name):
    path, content = tmp_path / name, os.urandom(300_000)
    path.write_bytes(packed(name, content[:200_000]) + packed(name, content[200_000:]))
    with json_files._open_stream(path) as file:
        assert file.read() == content, "of all members or frames"


def test_a_disk_that_fails_is_one_error(tmp_path, domains, monkeypatch):
    class Failing(io.BytesIO):
        def readline(self, _=-1):
            raise OSError(5, "Input/output error")

    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)
    monkeypatch.setattr(json_files, "_open_stream", lambda _: Failing())
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read at byte 0: .*Input/output error"):
        read_whole(path, domains)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.json.gz"])
def test_a_bomb_is_read_in_bounded_memory(tmp_path, domains, name, monkeypatch):
    """300 MB of zeros in one line and a good one after it, in a process that may have 200 MB more than it has. An array is not
    read on."""
    import resource

    monkeypatch.setattr(json_files, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / name
    begin, middle, end = (b"[", b",", b"]") if name.startswith("a.json.") else (b"", b"\n", b"")
    bomb = packed(name, bytes(50 << 20))
    path.write_bytes(packed(name, begin) * bool(begin) + bomb * 6 + packed(name, middle + GOOD + end))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), before[1]))
    try:
        bad, *good = read_whole(path, domains)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    if begin:
        assert (bad.reason, good) == ("not JSON", [])
        assert bad.detail.endswith(f"; {(300 << 20) + len(middle + GOOD + end):,} bytes from here on are not read")
    else:
        assert bad.reason == "line too long"
        assert bad.detail.startswith(f"{(300 << 20) + 1:,} bytes")
        assert [type(item) for item in good] == [Document]


# lines


def line(**record: object) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode()


def test_a_file_that_is_not_compressed_is_told_how_to_be_named(tmp_path, domains):
    (tmp_path / "a.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match=r"; copy the file again, or, if it is not compressed, name it \*\.jsonl$"):
        read_whole(tmp_path / "a.jsonl.gz", domains)


def test_a_line_without_end_is_skipped_in_bounded_memory(tmp_path, domains, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_LINE_BYTES", 1_000)
    monkeypatch.setattr(json_files, "_SKIP_BYTES", 64)
    long = line(domain="zh", text="好" * 1_000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(each + b"\n" for each in (GOOD, long, GOOD, long)))
    items = list(read_whole(path, domains))
    assert [getattr(item, "reason", "") for item in items] == ["", "line too long", "", "line too long"]
    assert items[1].offset == len(GOOD) + 1
    assert [items[1].line, items[3].line] == [2, 4], "a long line is one line"
    assert items[3].offset == 2 * (len(GOOD) + 1) + len(long) + 1
    assert f"{len(long) + 1:,} bytes" in items[1].detail


def test_a_file_that_became_shorter_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"a\nb\n")
    with pytest.raises(DataError, match=r"a\.jsonl: was changed while it was read: it ends at byte 4, not at 6"):
        list(json_lines(path, 2, 6))


def offsets_of(rows: Sequence[Row]) -> Iterator[int]:
    """The offset of each row with content."""
    return (offset for offset, row in rows if isinstance(row, bytes))


@given(
    st.lists(st.sampled_from([b"", b"\n", b"\r\n", b"ab", "\ufeff好".encode(), b"x" * 50, b"!\n"]), max_size=12),
    st.integers(1, 80),
)
def test_units_together_hold_every_line_once(tmp_path_factory, texts, size):
    """The oracle is Python's own splitting of the whole content at newlines."""
    path, content = tmp_path_factory.mktemp("lines") / "a.jsonl", b"".join(texts)
    path.write_bytes(content)
    cuts = line_ends(path, size)
    assert (cuts[0], cuts[-1]) == (0, len(content))
    assert all(end == len(content) or content[end - 1 : end] == b"\n" for end in cuts[1:])
    assert all(end - begin > 0 or not content for begin, end in pairwise(cuts))
    longest = max(map(len, content.splitlines(keepends=True)), default=0)
    assert all(end - begin < size + 1 + longest for begin, end in pairwise(cuts))

    def parse(line: bytes) -> tuple[bytes, int]:
        offset = next(offsets)
        if b"!" in line:
            raise RejectedLine("no", "at all")
        return line, offset

    found, before = [], 0
    for begin, end in pairwise(cuts):
        rows = list(json_lines(path, begin, end))
        offsets = offsets_of(rows)
        reader = items_of(path, rows, parse)
        while True:
            try:
                item = next(reader)
            except StopIteration as stop:
                before += stop.value
                break
            if not isinstance(item, Rejected):
                found.append(item)
            elif item.reason == "no":
                found.append((before + item.line, item.offset))
    expected, at = [], 0
    for number, raw in enumerate(content.split(b"\n"), 1):
        text = raw + b"\n" * (at + len(raw) < len(content))
        shown = text.removeprefix("\ufeff".encode()) if at == 0 else text
        if shown.strip():
            expected.append((number, at) if b"!" in text else (shown, at))
        at += len(text)
    assert found == expected


def test_a_file_of_blanks_is_named_and_one_with_a_blank_run_is_not(tmp_path, domains):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b" \n\r\n\t")
    (item,) = read_whole(path, domains)
    assert (item.reason, item.detail) == ("empty file", "there are only blanks in it")
    path.write_bytes(b"\n" * 50 + GOOD)
    assert [type(item) for item in read_whole(path, domains, size=10)] == [Document]


def test_a_long_line_is_searched_for_its_end_once(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "_SKIP_BYTES", 10)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 1_000 + b"\n" + b"y\n" * 10)
    assert line_ends(path, 7) == [0, 1_001, 1_009, 1_015, 1_021]


# arrays


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=12,
)


def written(folder: Path, content: bytes, name: str = "a.json") -> Path:
    path = folder / name
    path.write_bytes(packed(name, content))
    return path


def elements(path: Path) -> list[Any]:
    """Each element with its offset; rejected ones as they are."""
    rows = list(json_array(path))
    offsets = offsets_of(rows)
    return list(items_of(path, rows, lambda line: (json.loads(line.decode("utf-8", "surrogateescape")), next(offsets))))


@given(
    st.lists(st.one_of(VALUES, st.text(alphabet='\\"[]{},', max_size=20)), min_size=1, max_size=6),
    st.sampled_from([None, 0, 3, "\t"]),
    st.booleans(),
    st.integers(1, 9),
    st.sampled_from(["a.json", "a.json.zst"]),
)
def test_elements_are_those_of_pythons_parser(tmp_path_factory, values, indent, ascii_only, block, name):
    """The oracle is json.loads of the whole array; blocks of 1 … 9 bytes end anywhere."""
    content = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    path = written(tmp_path_factory.mktemp("array"), content + b" \n", name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "_CHUNK_BYTES", block)
        found = elements(path)
    assert [value for value, _ in found] == values
    decoder = json.JSONDecoder()
    for value, at in found:
        assert decoder.raw_decode(content[at:].decode("utf-8", "surrogatepass"))[0] == value


@given(st.binary(max_size=60), st.integers(1, 9))
def test_any_bytes_are_either_elements_or_rejected(tmp_path_factory, content, block):
    path = written(tmp_path_factory.mktemp("bytes"), b"[" + content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "_CHUNK_BYTES", block)

        for item in elements(path):
            if isinstance(item, Rejected):
                assert 0 <= item.offset <= len(content) + 1
            else:
                text = content[item[1] - 1 :].decode("utf-8", "surrogateescape")
                assert json.dumps(json.JSONDecoder().raw_decode(text)[0]) == json.dumps(item[0])


@pytest.mark.parametrize(
    ("content", "documents", "reason", "line", "offset", "detail"),
    [
        (b"", 0, "empty file", 1, 0, "there is nothing in it"),
        (b" [ \n ] ", 0, "empty file", 1, 5, "there is no element in the array"),
        (b"[", 0, "not JSON", 1, 1, "Expecting value"),
        (b"[" + GOOD, 1, "not JSON", 2, len(GOOD) + 1, "the array has no end"),
        (b"[" + GOOD + b"," + GOOD[:9], 1, "not JSON", 2, len(GOOD) + 2, "; 9 bytes from here on are not read"),
        (b"[" + GOOD + b"] [" + GOOD + b"]", 1, "not a JSON array", 2, len(GOOD) + 3, "join arrays"),
        (b"[" + GOOD + b"]]", 1, "not a JSON array", 2, len(GOOD) + 2, "; 1 bytes from here on are not read"),
        (b"[" + GOOD + b",," + GOOD + b"]", 1, "not JSON", 2, len(GOOD) + 2, f"; {len(GOOD) + 2} bytes from here on"),
        (b"[" + GOOD + b"},  " + GOOD + b"]", 1, "not JSON", 2, len(GOOD) + 1, "',' or ']' expected, not '}'"),
        (b'["a, b", ' + GOOD + b"]", 1, "not a JSON object", 1, 1, "the line holds 'a, b'"),
        ("[]".encode("utf-16"), 0, "not a JSON array", 1, 0, "the file begins with '\\xff'"),
        (b"\xef\xbbx", 0, "not a JSON array", 1, 0, r"begins with '\xef'"),
    ],
)
def test_what_is_no_array_of_objects_is_named_with_its_place(
    tmp_path, domains, content, documents, reason, line, offset, detail
):
    items = read_whole(written(tmp_path, content), domains)
    assert sum(isinstance(item, Document) for item in items) == documents
    (item,) = [item for item in items if isinstance(item, Rejected)]
    assert (item.reason, item.line, item.offset) == (reason, line, offset)
    assert detail in item.detail


def test_a_poisoned_element_costs_no_other_unless_it_is_no_json(tmp_path, domains):
    for case in POISONED_LINES:
        items = read_whole(written(tmp_path, b"[" + GOOD + b"," + case.line + b"," + GOOD + b"]"), domains)
        assert isinstance(items[0], Document), case.name
        *_, bad = [item for item in items if isinstance(item, Rejected)]
        assert len(GOOD) + 2 <= bad.offset <= len(GOOD) + 2 + len(case.line), case.name
        if bad.reason == "not JSON":
            assert bad is items[-1] and bad.detail.endswith(" bytes from here on are not read"), case.name
        else:
            assert bad.reason == case.reason, case.name
            assert bad is items[1] and isinstance(items[2], Document), case.name


def test_a_byte_order_mark_and_objects_without_an_array_are_read(tmp_path, domains):
    assert len(read_whole(written(tmp_path, b"\xef\xbb\xbf [" + GOOD + b"]"), domains)) == 1
    lines = b"\xef\xbb\xbf" + GOOD + b"\n{\n" + GOOD + b"\n"
    items = read_whole(written(tmp_path, lines), domains)
    assert [getattr(item, "line", 0) for item in items] == [0, 2, 0]


def test_a_long_element_is_left_out_and_one_without_end_ends_the_reading_in_bounded_memory(
    tmp_path, domains, monkeypatch
):
    monkeypatch.setattr(json_files, "MAX_LINE_BYTES", 1_000)
    monkeypatch.setattr(json_files, "_CHUNK_BYTES", 7)
    long, endless = (b'{"domain": "zh", "text": "' + b'\\\\\\"]},[{' * count + b'"}' for count in (120, 1_000))
    path = written(tmp_path, b"[ " + long + b" , " + GOOD + b",\n" + endless + b"," + GOOD + b"]")
    items = read_whole(path, domains)
    assert [getattr(item, "reason", "") for item in items] == ["line too long", "", "not JSON"]
    assert items[0].detail.startswith(f"{len(long):,} bytes")
    assert items[2].line == 3 and "or an element is longer than 1,000 bytes" in items[2].detail
    assert path.read_bytes()[items[2].offset :].startswith(endless)


@pytest.mark.parametrize("number", ["1.5", "-12e+3", "7E-2", "0.25e1", "10"])
def test_a_number_may_go_on_in_the_next_block(tmp_path, monkeypatch, number):
    path = written(tmp_path, f"[{number}, {number}]".encode(), "a.json")
    for block in range(1, 12):
        monkeypatch.setattr(json_files, "_CHUNK_BYTES", block)
        assert [value for value, _ in elements(path)] == [json.loads(number)] * 2
