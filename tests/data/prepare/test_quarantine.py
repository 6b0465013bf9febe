from __future__ import annotations

import json

from pangu_sigma.data.prepare.overview import format_reasons, write_rejected
from pangu_sigma.text.documents import Rejected

LINE = Rejected("a.jsonl", 2, 7007, "unknown domain", "domain 'fr'")


def test_lines_are_written_and_counted_with_an_example_of_each_reason(tmp_path):
    counts, examples = write_rejected(tmp_path / "q.jsonl", iter([LINE, LINE]))
    assert [json.loads(line)["offset"] for line in (tmp_path / "q.jsonl").read_text().splitlines()] == [7007] * 2
    assert counts == {"unknown domain": 2}
    assert examples == {"unknown domain": "a.jsonl:2 (byte 7,007): domain 'fr'"}
    assert write_rejected(tmp_path / "none.jsonl", []) == ({}, {})


def test_names_that_are_no_text_are_written_down_too(tmp_path):
    write_rejected(tmp_path / "q.jsonl", [Rejected("a\udcff.jsonl", 1, 0, "not JSON", "")])
    assert json.loads((tmp_path / "q.jsonl").read_bytes())["file"].startswith("a")


def test_all_reasons_are_shown_and_lines_that_the_reader_left_out_are_counted_apart():
    counts = {"a": 1, "b": 2_000, "left out by the reader": 1_000, "c": 3, "d": 4}
    assert format_reasons(counts, {"d": "x.jsonl:5: why"}).splitlines() == [
        "1,000 lines were left out by the reader",
        "2,008 lines are unusable and quarantined:",
        "  2,000 × b",
        "  4 × d, first x.jsonl:5: why",
        "  3 × c",
        "  1 × a",
    ]
    assert format_reasons({"left out by the reader": 1}, {}) == "1 line was left out by the reader"
