from __future__ import annotations

import json
from itertools import pairwise

import pytest
from helpers.record_files import read_whole
from hypothesis import given
from hypothesis import strategies as st

from experiments.chaos.poisoned import GOOD
from pangu_sigma.errors import DataError
from pangu_sigma.text import json_lines
from pangu_sigma.text.documents import Document, Rejected, RejectedLine, items_of
from pangu_sigma.text.json_lines import line_ends


def line(**record: object) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode()


def test_a_file_that_is_not_compressed_is_told_how_to_be_named(tmp_path, domains):
    (tmp_path / "a.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match=r"; copy the file again, or, if it is not compressed, name it \*\.jsonl$"):
        read_whole(tmp_path / "a.jsonl.gz", domains)


def test_a_line_without_end_is_skipped_in_bounded_memory(tmp_path, domains, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 1_000)
    monkeypatch.setattr(json_lines, "_SKIP_BYTES", 64)
    long = line(domain="zh", text="好" * 1_000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(each + b"\n" for each in (GOOD, long, GOOD, long)))
    items = list(read_whole(path, domains))
    assert [getattr(item, "reason", "") for item in items] == ["", "line too long", "", "line too long"]
    assert items[1].offset == len(GOOD) + 1
    assert [items[1].line, items[3].line] == [2, 4], "a long line is one line"
    assert items[3].offset == 2 * (len(GOOD) + 1) + len(long) + 1
    assert f"{len(long) + 1:,} bytes" in items[1].detail


def test_the_number_of_lines_is_returned(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"a\n\n{\nlast")
    reader = items_of(path, json_lines.json_lines(path), lambda line, at: (line, at))
    items = []
    with pytest.raises(StopIteration) as end:
        while True:
            items.append(next(reader))
    assert items == [(b"a\n", 0), (b"{\n", 3), (b"last", 5)]
    assert end.value.value == 4, "the blank line counts"


def test_a_file_that_became_shorter_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"a\nb\n")
    with pytest.raises(DataError, match=r"a\.jsonl: was changed while it was read: it ends at byte 4, not at 6"):
        list(json_lines.json_lines(path, 2, 6))


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

    def parse(line: bytes, at: int) -> tuple[bytes, int]:
        if b"!" in line:
            raise RejectedLine("no", "at all")
        return line, at

    found, before = [], 0
    for begin, end in pairwise(cuts):
        reader = items_of(path, json_lines.json_lines(path, begin, end), parse)
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
    monkeypatch.setattr(json_lines, "_SKIP_BYTES", 10)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 1_000 + b"\n" + b"y\n" * 10)
    assert line_ends(path, 7) == [0, 1_001, 1_009, 1_015, 1_021]
