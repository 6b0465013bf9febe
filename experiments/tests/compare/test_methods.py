"""What ways to route cost, from logs whose numbers are known, and the tables and the picture of a comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.cases import CaseError
from experiments.compare import methods
from experiments.compare.methods import cost_of, draw_differences, format_costs, load_by_layer, write_methods
from experiments.compare.variants import TrainedVariant, compare_variants, last_logged
from pangu_sigma.train.log.losses import HeldOutLoss, evaluation_line

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
def variants(tmp_path) -> list[TrainedVariant]:
    """Routed: 4.0, 4.1, 4.2 in zh; dense: 0.2 more, give or take a little."""
    even, uneven = [[5, 5], [0, 10]], [[15, 5], [10, 10]]
    routed = [write_run(tmp_path / f"r{i}", 4.0 + 0.1 * i, [even, uneven], [None, 900.0, 1000.0]) for i in range(3)]
    dense = [write_run(tmp_path / f"d{i}", 4.2 + 0.101 * i, [[[0, 0]]], [1200.0]) for i in range(3)]
    return [TrainedVariant("RRE random", {"1e-3": routed}), TrainedVariant("dense", {"1e-3": dense})]


def test_load_is_of_the_whole_run_and_experts_that_get_nothing_count(variants):
    assert load_by_layer([{"kind": "load", "tokens_NK": [[30, 10, 0, 0]]}]) == [3.0]
    assert cost_of(variants[0].runs["1e-3"])["load"] == pytest.approx([20 / 15, 20 / 15])
    assert cost_of(variants[1].runs["1e-3"])["load"] == [], "nothing is routed"
    assert load_by_layer([]) == []


def test_spread_is_over_seeds_and_speed_the_median_of_the_log(variants):
    found = cost_of(variants[0].runs["1e-3"])
    assert found["spread"] == pytest.approx({"zh": 0.1, "en": 0.05})
    assert found["tokens_per_second"] == 950.0
    assert cost_of(variants[0].runs["1e-3"][:1])["spread"] == {"zh": None, "en": None}


def test_all_of_it_is_written_beside_the_runs(variants, tmp_path):
    text = write_methods(variants[0], variants[1:], tmp_path)
    assert (tmp_path / "differences.txt").read_text() == text + "\n"
    rates, differences, costs = (table.splitlines() for table in text.split("\n\n"))
    assert len(rates) == 1 + 2
    assert differences[1].split() == ["zh", "dense", "4.100", "4.301", "-0.2010", "0.0006", "0.0000"]
    assert costs[1].split() == ["RRE", "random", "4.100", "±", "0.1000", "2.050", "±", "0.0500", "1.33", "1.33", "950"]
    assert costs[2].split() == ["dense", "4.301", "±", "0.1010", "2.151", "±", "0.0505", "–", "1,200"]
    kept = json.loads((tmp_path / "differences.json").read_text())
    assert format_costs(kept) == text.split("\n\n")[2]
    assert (tmp_path / "differences.png").read_bytes()[:4] == b"\x89PNG"


def test_the_picture_has_every_seed_and_the_interval(variants):
    compared = compare_variants(variants[0], variants[1:], last_logged)
    panels = draw_differences(compared).axes
    assert [axes.get_title() for axes in panels] == ["zh", "en"]
    points, interval = panels[0].collections[0], panels[0].containers[0]
    assert sorted(points.get_offsets()[:, 0].tolist()) == pytest.approx([-0.202, -0.201, -0.2])
    half = np.ptp(interval[2][0].get_segments()[0][:, 0]) / 2
    assert half == pytest.approx(4.303 * 0.001 / np.sqrt(3), rel=1e-6)
    one = [TrainedVariant(variant.name, {"1e-3": variant.runs["1e-3"][:1]}) for variant in variants]
    assert not draw_differences(compare_variants(one[0], one[1:], last_logged)).axes[0].containers


def test_five_variants_are_trained_alike(recorded, tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(methods, "write_methods", lambda first, others, folder: compared.append([first, *others]))
    methods.compare_methods(tmp_path, [1, 4], ["1e-3", "2e-3"], 40, ["model.hidden=32"])
    expected = [f"{name}_{seed}_{rate}" for seed in (1, 4) for rate in ("1e-3", "2e-3") for name in methods.METHODS]
    assert list(recorded.cases) == expected
    for name, keys in (
        ("dense_1_1e-3", {"model.dense_layers", "model.rre_layers"}),
        ("balanced_1_1e-3", {"routing.table"}),
        ("hash_1_1e-3", set()),
        ("gate_1_1e-3", set()),
        ("random_4_1e-3", {"seed", "routing.seed"}),
        ("random_1_2e-3", {"train.optimizer.peak_lr"}),
    ):
        assert recorded.differing("random_1_1e-3", name) == keys
        assert recorded.cases[name][1:] == (name.split("_")[0], recorded.config(name), tmp_path / name)
    config = recorded.config("gate_4_2e-3")
    assert (config.seed, config.routing.seed, config.train.optimizer.peak_lr) == (4, 6, 2e-3)
    assert (config.train.steps, config.train.optimizer.warmup_steps, config.train.optimizer.decay_steps) == (40, 4, 36)
    assert (config.ecss.enabled, config.model.hidden, config.train.loss_scale.window) == (False, 32, 41)
    assert [variant.name for variant in compared[0]] == list(methods.METHODS.values())
    with pytest.raises(CaseError, match="at least 10 is needed"):
        methods.compare_methods(tmp_path, [1], ["1e-3"], 7)
