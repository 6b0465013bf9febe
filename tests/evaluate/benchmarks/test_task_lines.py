"""A line that is no item is skipped, and the file, its number and what was expected are said."""

from __future__ import annotations

import gzip
import logging
import re
from pathlib import Path

import pytest

from pangu_sigma.errors import DataError
from pangu_sigma.evaluate.benchmarks.task_lines import read_rows, task_file

FIELDS = {"id": int, "text": str, "tests": list}
GOOD = b'{"id": 1, "text": "a\\u2028b", "tests": ["c"]}'
BAD = {
    b"not JSON": "Expecting value: .*; a line holds a whole object",
    b"[1]": "the line holds a list",
    b"{": "Expecting property name",
    b'"text"': "the line holds a string",
    b"[" * 100_000: "maximum recursion depth",
    b"{}": "a field id, a whole number, expected",
    b'{"id": "1", "text": "a", "tests": []}': "id: a whole number expected, found '1'",
    b'{"id": true, "text": "a", "tests": []}': "id: a whole number expected, found True",
    b'{"id": 2, "text": null, "tests": []}': "text: a text expected, found None",
    b'{"id": 2, "text": "\\ud800", "tests": []}': "text: a text expected",
    b'{"id": 2, "text": "a", "tests": "b"}': "tests: a list of texts expected, found 'b'",
    b'{"id": 2, "text": "a", "tests": [1]}': r"tests: a list of texts expected, found \[1\]",
    b'{"id": 2, "text": "bad", "tests": []}': "text: a good one expected",
    b'{"id": 1, "text": "again", "tests": []}': "id: another one in each line expected, found 1 again",
    b'{"id": 2, "text": "\xff", "tests": []}': "byte 19 of the line: invalid start byte",
}


def check(row: dict) -> str:
    return "text: a good one expected" if row["text"] == "bad" else ""


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_a_line_that_is_no_item_is_said_and_skipped(tmp_path, caplog, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([GOOD, b"", line, b""]))
    rows, skipped = read_rows(path, FIELDS, "id", check)
    assert [row["text"] for row in rows] == ["a\u2028b"]
    assert skipped == 1
    (told,) = caplog.messages
    assert re.match(f"1 of 2 lines are skipped: {path}:3: {BAD[line]}", told)


def test_a_file_of_which_nothing_is_left_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n\n")
    with pytest.raises(DataError, match=r"has no line that can be used: .*there are only blanks in it"):
        read_rows(path, FIELDS)
    path.write_bytes(b"1\n" * 7)
    with pytest.raises(DataError, match=r"a.jsonl:1: the line holds a number; .*; and 2 more"):
        read_rows(path, FIELDS)


def test_a_packed_file_is_the_same_and_a_damaged_one_is_refused(tmp_path, caplog):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + GOOD + b"\n"))
    with caplog.at_level(logging.WARNING):
        assert read_rows(path, FIELDS)[1] == 0
    assert caplog.messages == []
    for damaged in (path.read_bytes()[:-12], GOOD, path.read_bytes()[:20] + b"0000" + path.read_bytes()[24:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"gz: (cannot be read: .*; get|.* is damaged .*; copy) the file again"):
            read_rows(path, FIELDS)


def test_a_missing_file_says_where_it_is_published(tmp_path):
    with pytest.raises(DataError, match=r"a.gz \(or a\) is not there; get it from the moon"):
        task_file(tmp_path, ["a.gz", "a"], "the moon")
    (tmp_path / "a").touch()
    assert task_file(tmp_path, ["a.gz", "a"], "the moon") == tmp_path / "a"
    assert isinstance(task_file(tmp_path, ["a"], ""), Path)
