from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from helpers.record_files import packed, read_whole

from experiments.chaos.poisoned import GOOD
from pangu_sigma.errors import DataError
from pangu_sigma.text import json_lines
from pangu_sigma.text.documents import Document
from pangu_sigma.text.streams import INPUTS, check_input, open_stream


def test_names_say_the_format(tmp_path, domains):
    with pytest.raises(DataError, match=r"input .*none\.jsonl: cannot be read: No such file"):
        check_input(tmp_path / "none.jsonl")
    for name in ("a.txt", "a.json", "a.jsonl.bz2", "a.JSONL", "a.tar", "jsonl", "a.json~"):
        with pytest.raises(DataError, match=r"must end in \.jsonl, \.jsonl\.gz, \.jsonl\.zst$"):
            check_input(tmp_path / name)
    with pytest.raises(DataError, match=r"must end in \.jsonl, .*, \.parquet$"):
        check_input(tmp_path / "a.parquet.gz", ends=INPUTS)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_stream_is_the_bytes_before_compression(tmp_path, name):
    path, content = tmp_path / name, os.urandom(300_000)
    path.write_bytes(packed(name, content[:200_000]) + packed(name, content[200_000:]))
    with open_stream(path) as file:
        assert file.read() == content, "of all members or frames"


def test_a_name_that_no_file_can_have_is_one_error():
    with pytest.raises(DataError, match=r"input a.* cannot be read"):
        check_input(Path("a\0.jsonl"))


def test_a_disk_that_fails_is_one_error(tmp_path, domains, monkeypatch):
    class Failing(io.BytesIO):
        def readline(self, _=-1):
            raise OSError(5, "Input/output error")

    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)
    monkeypatch.setattr(json_lines, "open_stream", lambda _: Failing())
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read at byte 0: .*Input/output error"):
        read_whole(path, domains)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "a.json.zst"])
def test_a_bomb_is_read_in_bounded_memory(tmp_path, domains, name, monkeypatch):
    """300 MB of zeros in one line and a good one after it, in a process that may have 200 MB more than it has. An array is not
    read on."""
    import resource

    monkeypatch.setattr("pangu_sigma.text.json_lines.MAX_LINE_BYTES", 1 << 20)
    monkeypatch.setattr("pangu_sigma.text.json_array.MAX_LINE_BYTES", 1 << 20)
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
