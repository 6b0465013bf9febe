"""Ratios are taken round by round, and say who is better."""

from __future__ import annotations

import pytest

from experiments.bench.harness import absent, compare, figure, format_rows, limit, take_turns


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


def test_a_figure_beside_anothers_has_a_ratio_that_says_who_is_better():
    assert figure("bench", "case", "speed-up", 6.0, 4.0, "x").ratio == pytest.approx(1.5)
    assert figure("bench", "case", "bytes", 6.0, 4.0, "x", lower=True).ratio == pytest.approx(4 / 6)


@pytest.mark.parametrize(("ours", "verdict"), [(0.03, "ok"), (5.0, "ok"), (5.01, "NOT OK")])
def test_a_limit_is_kept_or_not_and_has_no_ratio(ours: float, verdict: str):
    row = limit("bench", "case", "stall", ours, 5.0, "%")
    assert format_rows([row]).splitlines()[2].split(None, 2)[2] == f"{ours:.2f} of at most 5 %: {verdict}"
    tree = row.as_dict()
    assert (tree["ours"], tree["limit"], tree["unit"], tree["ok"]) == (ours, 5.0, "%", verdict == "ok")
    assert tree["ratio"] is tree["peer_value"] is None


def test_a_comparison_has_no_limit():
    tree = absent("bench", "case", 5.0, "torch", "ms", 9).as_dict()
    assert tree["limit"] is tree["ok"] is None
