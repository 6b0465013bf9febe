"""Ratios are taken round by round, and say who is better."""

from __future__ import annotations

import pytest

from pangu_sigma.bench.harness import absent, compare, format_rows, take_turns


def test_contenders_take_turns_and_the_first_round_does_not_count():
    calls: list[str] = []
    seconds = take_turns({"ours": lambda: calls.append("a"), "peer": lambda: calls.append("b")}, runs=3)
    assert calls == ["a", "b"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"ours": 3, "peer": 3}


def test_ratio_is_the_median_of_the_rounds_and_above_one_when_ours_is_faster():
    """The machine slows down tenfold in the last round; the ratio of each round does not care."""
    (row,) = compare("bench", "case", {"ours": [1.0, 1.0, 10.0], "peer": [2.0, 2.0, 20.0]})
    assert row.ratio == pytest.approx(2.0)
    assert (row.ours, row.peer_value, row.unit, row.runs) == (1000.0, 2000.0, "ms", 3)


def test_rates_are_work_over_time_and_the_ratio_still_says_who_is_better():
    (row,) = compare("bench", "case", {"ours": [1.0, 2.0, 4.0], "peer": [3.0, 6.0, 8.0]}, work=12, unit="tokens/s")
    assert (row.ours, row.peer_value, row.unit) == (6.0, 2.0, "tokens/s")
    assert row.ratio == pytest.approx(3.0)


def test_a_case_is_written_once_above_its_rows():
    seconds = {"ours": [1.0], "peer": [2.0], "other": [3.0]}
    lines = format_rows(compare("bench", "the case", seconds)).splitlines()
    assert lines[1] == "the case"
    assert [line.split()[1] for line in lines[2:]] == ["peer", "other"]


def test_an_absent_peer_is_said_to_be_absent():
    row = absent("bench", "case", 5.0, "torch", "ms", 9)
    assert row.ratio is None
    assert "absent" in format_rows([row])
