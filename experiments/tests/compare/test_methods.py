"""What ways to route cost, from logs whose numbers are known, and the tables and the picture of a comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.cases import CaseError
from experiments.compare import methods
from experiments.compare.arms import ARMS, Sizes
from experiments.compare.methods import (
    cost_of,
    draw_differences,
    format_costs,
    format_gaps,
    load_by_segment,
    write_methods,
)
from experiments.compare.variants import TrainedVariant, compare_variants, last_logged
from experiments.tiny import tiny_config
from pangu_sigma.data.prepared import PreparedData
from pangu_sigma.held_out.losses import HeldOutLoss, evaluation_line
from pangu_sigma.sealed import sealed_line

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
    (run / "metrics.jsonl").write_text("".join(map(sealed_line, lines)), encoding="utf-8")
    return run


@pytest.fixture
def variants(tmp_path) -> list[TrainedVariant]:
    """Routed: 4.0, 4.1, 4.2 in zh; dense: 0.2 more, give or take a little."""
    even, uneven = [[5, 5], [0, 10]], [[15, 5], [10, 10]]
    routed = [write_run(tmp_path / f"r{i}", 4.0 + 0.1 * i, [even, uneven], [None, 900.0, 1000.0]) for i in range(3)]
    dense = [write_run(tmp_path / f"d{i}", 4.2 + 0.101 * i, [[[0, 0]]], [1200.0]) for i in range(3)]
    return [TrainedVariant("RRE, 4 a domain", {"1e-3": routed}), TrainedVariant("dense", {"1e-3": dense})]


SIZES = {
    "RRE, 4 a domain": Sizes(9_000_000, 8_430_000, 4_000_000, 16_860_000, [2, 2]),
    "dense": Sizes(9_000_000, 527_000, 527_000, 0, []),
    "2 own + 2 common": Sizes(9_000_000, 8_430_000, 5_000_000, 16_860_000, [2, 2]),
}


def test_load_is_of_the_whole_run_and_experts_that_get_nothing_count(variants):
    load = [{"kind": "load", "tokens_NK": [[30, 10, 0, 0]]}]
    assert load_by_segment(load, [4]) == [3.0]
    assert load_by_segment(load, [2]) == [1.5], "rows are padded to the longest: a segment may have fewer experts"
    assert cost_of(variants[0].runs["1e-3"], [2, 2])["load"] == pytest.approx([20 / 15, 20 / 15])
    assert cost_of(variants[1].runs["1e-3"], [])["load"] == [], "nothing is routed"
    assert load_by_segment([], [4]) == []


def test_spread_is_over_seeds_and_speed_the_median_of_the_log(variants):
    found = cost_of(variants[0].runs["1e-3"], [2, 2])
    assert found["spread"] == pytest.approx({"zh": 0.1, "en": 0.05})
    assert found["tokens_per_second"] == 950.0
    assert cost_of(variants[0].runs["1e-3"][:1], [2, 2])["spread"] == {"zh": None, "en": None}


def test_all_of_it_is_written_beside_the_runs(variants, tmp_path):
    third = TrainedVariant("2 own + 2 common", {"3e-3": [*variants[0].runs["1e-3"]]})
    text = write_methods([*variants, third], SIZES, tmp_path)
    assert (tmp_path / "differences.txt").read_text() == text + "\n"
    rates, first, dense, costs = (table.splitlines() for table in text.split("\n\n"))
    assert [line.split()[-2:] for line in rates[1:]] == [["3.075*", "–"], ["3.226*", "–"], ["–", "3.075*"]]
    assert first[0].startswith("nats a token more than RRE, 4 a domain, ± half of the 95 % interval over 3 seeds")
    assert first[2].split() == ["dense", "0.2010", "±0.0025*", "0.1005", "±0.0012*", "0.1508", "±0.0019*"]
    assert first[3].split()[-2:] == ["0.0000", "±0.0000"]
    assert dense[0].startswith("nats a token more than dense")
    assert [line.split()[-2] for line in dense[2:]] == ["-0.1508"] * 2
    assert costs[4].split()[4:] == [
        *("4.100", "±", "0.1000", "2.050", "±", "0.0500", "9.0", "8.4", "4.0", "16.9", "950", "1.33", "1.33")
    ]
    assert costs[5].split() == [
        *("dense", "4.301", "±", "0.1010", "2.151", "±", "0.0505", "9.0", "0.5", "0.5", "0.0", "1,200", "–")
    ]
    kept = json.loads((tmp_path / "differences.json").read_text())
    assert format_costs(kept["variants"]) == text.split("\n\n")[3]
    assert format_gaps(kept["against_dense"], "dense") == text.split("\n\n")[2]
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


def test_arms_are_trained_alike(recorded, tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(methods, "write_methods", lambda *taken: compared.append(taken) or "tables")
    monkeypatch.setattr(methods, "format_passes", lambda _: "passes")
    arms = list(ARMS)
    options = {"steps": 40, "arms": arms, "overrides": ["model.ffn=64"]}
    text = methods.compare_methods(tmp_path, [1, 4], ["1e-3", "2e-3"], **options)
    assert text.splitlines()[:2] == ["tables", "passes"]
    expected = [f"{name}_{seed}_{rate}" for seed in (1, 4) for rate in ("1e-3", "2e-3") for name in arms]
    assert sorted(recorded.cases) == sorted(expected)
    for name, keys in (
        ("dense_1_1e-3", {"model.dense_layers", "model.rre_layers", "model.experts_per_domain"}),
        ("rre16_1_1e-3", {"model.experts_per_domain"}),
        ("balanced_1_1e-3", {"routing.table"}),
        ("own_own_1_1e-3", {"model.segments"}),
        ("mixed_1_1e-3", {"model.segments", "model.common_experts"}),
        ("hash_1_1e-3", set()),
        ("gate_1_1e-3", set()),
        ("moge_1_1e-3", {"model.segments"}),
        ("mixed64_1_1e-3", {"model.segments", "model.common_experts", "model.experts_per_domain"}),
        ("rre_4_1e-3", {"seed", "routing.seed"}),
        ("rre_1_2e-3", {"train.optimizer.peak_lr"}),
    ):
        assert {key.rstrip(".123") for key in recorded.differing("rre_1_1e-3", name)} == keys
        peer = ARMS[name.rpartition("_")[0].rpartition("_")[0]].peer
        assert recorded.cases[name][1:] == (peer, recorded.config(name), tmp_path / name)
    config = recorded.config("gate_4_2e-3")
    assert (config.seed, config.routing.seed, config.train.optimizer.peak_lr) == (4, 6, 2e-3)
    assert (config.train.steps, config.train.optimizer.warmup_steps, config.train.optimizer.decay_steps) == (40, 4, 36)
    assert (config.ecss.enabled, config.model.ffn) == (False, 64)
    trained, sizes, _ = compared[0]
    assert [variant.name for variant in trained] == list(sizes) == [arm.title for arm in ARMS.values()]
    for wrong, message in (
        ({"steps": 7}, "at least 10"),
        ({"arms": ["rre", "rre"]}, "give two at least"),
        ({"overrides": ["data.domains_per_step=2", "data.domain_sets=2"]}, "give 4, all"),
    ):
        with pytest.raises(CaseError, match=message):
            methods.compare_methods(tmp_path, [1], ["1e-3"], **(options | wrong))


def test_a_longer_comparison_takes_the_best_rates_of_a_shorter_one(recorded, variants, tmp_path, monkeypatch):
    write_methods(variants, SIZES, tmp_path)
    assert methods.best_rates(tmp_path, ["dense", "rre"]) == {"dense": ["1e-3"], "rre": ["1e-3"]}
    with pytest.raises(CaseError, match=r"--rates-of .* has no hash; end that comparison first"):
        methods.best_rates(tmp_path, ["dense", "hash"])
    monkeypatch.setattr(methods, "write_methods", lambda *_: "tables")
    monkeypatch.setattr(methods, "format_passes", lambda _: "passes")
    text = methods.compare_methods(tmp_path / "long", [1], ["9"], 20, ["dense", "rre"], tmp_path)
    assert list(recorded.cases) == ["dense_1_1e-3", "rre_1_1e-3"]
    assert f"rates are the best of {tmp_path}" in text


def test_what_two_arms_have_in_common_is_trained_once(tmp_path):
    rates = {"rre": ["1e-3"], "balanced": ["1e-3"], "hash": ["1e-3"]}
    trained, cases = methods.lay_out(tmp_path, [1], rates, [["routing.table=balanced"]])
    assert list(cases) == ["rre_1_1e-3", "hash_1_1e-3"]
    assert trained[0].runs == trained[1].runs == {"1e-3": [tmp_path / "rre_1_1e-3"]}


def test_passes_are_of_the_text_that_is_there(tiny_data):
    config = tiny_config(tiny_data)
    counts_D = PreparedData(tiny_data).frequencies().sum(axis=1)
    found = methods.format_passes(config).split()
    assert found[0] == f"{config.train.steps * 4 * 32:,}"
    assert float(found[found.index("en") + 1].strip(",")) == pytest.approx(30 * 4 * 32 / 3 / counts_D[1], abs=0.01)
