"""What ways to route cost, from logs whose numbers are known, and the tables and the picture of a comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pangu_sigma.evaluate.arms import Arm, compare_arms, last_logged
from pangu_sigma.evaluate.methods import cost_of, draw_differences, format_costs, load_by_layer, write_methods
from pangu_sigma.train.losses import HeldOutLoss, evaluation_line

TOKENS = np.array([200.0, 100.0])


def write_run(run: Path, nats_per_token: float, loads: list[list[list[int]]], speeds: list[float | None]) -> Path:
    """A run that has logged an evaluation before and one after, two lines of load, and lines of steps."""
    losses = {
        name: HeldOutLoss(nats_per_token * factor * TOKENS, TOKENS, 3 * TOKENS, 7.0, name)
        for name, factor in (("zh", 1.0), ("en", 0.5))
    }
    lines = [
        {"kind": "run", "step": 0},
        evaluation_line(0, losses),
        *({"kind": "step", "step": 1 + i, "tokens_per_second": speed} for i, speed in enumerate(speeds)),
        *({"kind": "load", "step": 2, "tokens_NK": load} for load in loads),
        evaluation_line(2, losses),
    ]
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return run


@pytest.fixture
def arms(tmp_path) -> list[Arm]:
    """Routed: 4.0, 4.1, 4.2 in zh; dense: 0.2 more, give or take a little."""
    even, uneven = [[5, 5], [0, 10]], [[15, 5], [10, 10]]
    routed = [write_run(tmp_path / f"r{i}", 4.0 + 0.1 * i, [even, uneven], [None, 900.0, 1000.0]) for i in range(3)]
    dense = [write_run(tmp_path / f"d{i}", 4.2 + 0.101 * i, [[[0, 0]]], [1200.0]) for i in range(3)]
    return [Arm("RRE random", {"1e-3": routed}), Arm("dense", {"1e-3": dense})]


def test_load_is_of_the_whole_run_and_experts_that_get_nothing_count(arms):
    assert load_by_layer([{"kind": "load", "tokens_NK": [[30, 10, 0, 0]]}]) == [3.0]
    assert cost_of(arms[0].runs["1e-3"])["load"] == pytest.approx([20 / 15, 20 / 15])
    assert cost_of(arms[1].runs["1e-3"])["load"] == [], "nothing is routed"
    assert load_by_layer([]) == []


def test_spread_is_over_seeds_and_speed_the_median_of_the_log(arms):
    found = cost_of(arms[0].runs["1e-3"])
    assert found["spread"] == pytest.approx({"zh": 0.1, "en": 0.05})
    assert found["tokens_per_second"] == 950.0
    assert cost_of(arms[0].runs["1e-3"][:1])["spread"] == {"zh": None, "en": None}


def test_all_of_it_is_written_beside_the_runs(arms, tmp_path):
    text = write_methods(arms[0], arms[1:], tmp_path)
    assert (tmp_path / "differences.txt").read_text() == text + "\n"
    rates, differences, costs = (table.splitlines() for table in text.split("\n\n"))
    assert len(rates) == 1 + 2
    assert differences[1].split() == ["zh", "dense", "4.100", "4.301", "-0.2010", "0.0006", "0.0000"]
    assert costs[1].split() == ["RRE", "random", "4.100", "±", "0.1000", "2.050", "±", "0.0500", "1.33", "1.33", "950"]
    assert costs[2].split() == ["dense", "4.301", "±", "0.1010", "2.151", "±", "0.0505", "–", "1,200"]
    kept = json.loads((tmp_path / "differences.json").read_text())
    assert format_costs(kept) == text.split("\n\n")[2]
    assert (tmp_path / "differences.png").read_bytes()[:4] == b"\x89PNG"


def test_the_picture_has_every_seed_and_the_interval(arms):
    compared = compare_arms(arms[0], arms[1:], last_logged)
    panels = draw_differences(compared).axes
    assert [axes.get_title() for axes in panels] == ["zh", "en"]
    points, interval = panels[0].collections[0], panels[0].containers[0]
    assert sorted(points.get_offsets()[:, 0].tolist()) == pytest.approx([-0.202, -0.201, -0.2])
    half = np.ptp(interval[2][0].get_segments()[0][:, 0]) / 2
    assert half == pytest.approx(4.303 * 0.001 / np.sqrt(3), rel=1e-6)
    one = [Arm(arm.name, {"1e-3": arm.runs["1e-3"][:1]}) for arm in arms]
    assert not draw_differences(compare_arms(one[0], one[1:], last_logged)).axes[0].containers
