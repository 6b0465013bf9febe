"""Variants are taken at the rate that lost least in training; the first is compared with the others on all held-out tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments.compare import variants
from experiments.compare.variants import (
    TrainedVariant,
    compare_variants,
    draw_variants,
    evaluations,
    format_variants,
    half_width_95,
    is_certain,
    last_logged,
    mean_over_domains,
    write_comparison,
)
from pangu_sigma.config import ConfigError
from pangu_sigma.held_out.losses import HeldOutLoss, evaluation_line
from pangu_sigma.sealed import sealed_line

SEEDS, RATES = ("1", "2", "3"), ("1e-3", "3e-3")
OF_RATE = {"Σ inherited": {"1e-3": 5.0, "3e-3": 4.5}, "α continued": {"1e-3": 4.8, "3e-3": 5.2}}
"""What training logged last for zh, seed 2; other seeds are 0.1 apart, en loses 1 more."""


def write_log(run: Path, losses: dict[int, dict[str, float | None]]) -> Path:
    run.mkdir(parents=True)
    lines = [{"kind": "evaluation", "step": step, "per_domain_loss": found} for step, found in losses.items()]
    text = "".join(map(sealed_line, [{"kind": "run", "step": 0}, *lines]))
    (run / "metrics.jsonl").write_text(text, encoding="utf-8")
    return run


@pytest.fixture
def two(tmp_path) -> list[TrainedVariant]:
    found = []
    for name, by_rate in OF_RATE.items():
        runs = {
            rate: [
                write_log(
                    tmp_path / f"{name[2:]}_{seed}_{rate}",
                    {0: {"zh": 9.0, "en": 9.0}, 4: {"zh": last + i, "en": last + 1 + i}},
                )
                for seed, i in zip(SEEDS, (-0.1, 0.0, 0.1), strict=True)
            ]
            for rate, last in by_rate.items()
        }
        found.append(TrainedVariant(name, runs))
    return found


@pytest.fixture
def measured(monkeypatch) -> dict[str, object]:
    """Stands in for the evaluation of runs and says which were evaluated: on 20 samples the inherited lose 0.5 nats less."""
    asked: dict[str, object] = {}

    def measure(runs, all=False):
        asked.update(runs=list(runs), all=all)
        found = {}
        for run in runs:
            rng = np.random.default_rng(
                int(run.name.split("_")[1])
            )  # what a seed does to a sample, it does in both variants
            nats_U = rng.normal(500, 50, 20) - (50 if run.name.startswith("inherited") else 0)
            found[run] = {
                name: HeldOutLoss(nats_U, np.full(20, 100), np.full(20, 300), 7.0, name) for name in ("zh", "en")
            }
        return found, {}

    monkeypatch.setattr(variants, "measure_together", measure)
    return asked


def test_the_best_rate_has_the_lowest_mean_over_seeds_and_domains_at_the_end_of_training(two):
    assert two[0].losses() == pytest.approx({"1e-3": 5.5, "3e-3": 5.0})
    assert [variant.best_rate() for variant in two] == ["3e-3", "1e-3"]


def test_a_rate_that_diverged_is_not_the_best_and_without_any_the_variant_is_refused(tmp_path):
    good = write_log(tmp_path / "good", {0: {"zh": 9.0}, 2: {"zh": 8.9}})
    bad = write_log(tmp_path / "bad", {0: {"zh": 9.0}, 2: {"zh": None}})
    assert TrainedVariant("a", {"1": [good, bad], "2": [good, good]}).best_rate() == "2"
    assert math.isnan(TrainedVariant("a", {"1": [good, bad]}).losses()["1"])
    with pytest.raises(ConfigError, match="a: no run of the rates 1, 3 has a finite loss; try lower rates"):
        TrainedVariant("a", {"1": [good, bad], "3": [bad]}).best_rate()
    with pytest.raises(ConfigError, match="none has logged no evaluation"):
        evaluations(write_log(tmp_path / "none", {}))


def test_each_variant_is_evaluated_once_on_everything_at_its_best_rate(two, measured):
    scratch = TrainedVariant("Σ from scratch", two[1].runs)
    compared = compare_variants(two[0], [two[1], scratch])
    expected = [*two[0].runs["3e-3"], *two[1].runs["1e-3"]]
    assert list(dict.fromkeys(measured["runs"])) == expected
    assert measured["all"] is True
    assert [variant["best"] for variant in compared["variants"].values()] == ["3e-3", "1e-3", "1e-3"]
    assert list(compared["against"]) == ["α continued", "Σ from scratch"]
    for comparison in compared["against"].values():
        mean = comparison["mean"]["zh"]
        assert mean["nats_per_token"] == pytest.approx(-0.5)
        assert mean["se"] == pytest.approx(0, abs=1e-9), "paired by seed and sample, nothing else is left"
    gap = compared["variants"]["Σ inherited"]["held_out"]["en"] - compared["variants"]["α continued"]["held_out"]["en"]
    assert gap == pytest.approx(-0.5)


def test_runs_that_did_not_end_at_the_same_step_are_refused(two, measured):
    last = two[1].runs["3e-3"][2]
    lines = (last / "metrics.jsonl").read_text().splitlines()
    (last / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ConfigError, match=f"{last} was evaluated after steps 0, .* after 0, 4; they must be equal"):
        compare_variants(two[0], two[1:])
    assert not measured, "nothing is evaluated in vain"


def test_tables_and_curves_are_written_beside_the_runs(two, measured, tmp_path):
    text = write_comparison(two[0], two[1:], tmp_path)
    assert (tmp_path / "differences.txt").read_text() == text + "\n"
    lines = text.splitlines()
    assert lines[1].split() == ["Σ", "inherited", "5.500", "5.000*"]
    assert lines[2].split() == ["α", "continued", "5.300*", "5.700"]
    assert lines[4].endswith("4,000 held-out tokens, mean of 3 seeds")
    assert [line.split()[0] for line in lines[5:]] == ["zh", "en", "mean"]
    assert lines[5].split()[5:] == ["-0.5000", "0.0000", "0.0000"]
    assert lines[7].split()[5:] == ["-0.5000", "0.0000", "–"]
    kept = json.loads((tmp_path / "differences.json").read_text())
    assert format_variants(kept) == text
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_curves_are_of_every_run_and_of_their_mean(two):
    figure = draw_variants({variant.name: variant.runs["1e-3"] for variant in two})
    assert [axes.get_title() for axes in figure.axes] == ["zh", "en"]
    thick = [line for line in figure.axes[0].lines if line.get_label() == "Σ inherited"]
    assert len(figure.axes[0].lines) == 2 * (3 + 1)
    assert thick[0].get_xdata().tolist() == [0, 4]
    assert thick[0].get_ydata().tolist() == pytest.approx([9.0, 5.0])


def student_density(t: np.ndarray, freedom: int) -> np.ndarray:
    """Density of Student's t."""
    factor = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    return factor * (1 + t**2 / freedom) ** (-(freedom + 1) / 2)


@pytest.mark.parametrize("seeds", range(2, 11))
def test_an_interval_of_so_many_errors_holds_95_percent_of_student_s_t(seeds):
    t = np.linspace(-half_width_95(1.0, seeds), half_width_95(1.0, seeds), 200_001)
    density = student_density(t, seeds - 1)
    inside = float(((density[1:] + density[:-1]) / 2 * np.diff(t)).sum())
    assert inside == pytest.approx(0.95, abs=2e-4)


def test_in_worlds_without_a_difference_one_in_twenty_looks_certain():
    rng = np.random.default_rng(0)
    for seeds in (2, 3, 5):
        worlds = rng.normal(size=(4000, seeds))
        errors = worlds.std(axis=1, ddof=1) / math.sqrt(seeds)
        wrong = [is_certain(m, e, seeds) for m, e in zip(worlds.mean(axis=1).tolist(), errors.tolist(), strict=True)]
        assert np.mean(wrong) == pytest.approx(0.05, abs=0.012), seeds


def test_what_the_seeds_do_not_decide_is_not_certain():
    assert is_certain(-0.0441, 0.01, 3)
    assert not is_certain(-0.0429, 0.01, 3), "4.3 errors to each side"
    assert is_certain(0.0441, 0.01, 3)
    assert is_certain(0.02, 0.0, 2)
    assert not is_certain(1.0, None, 1), "one seed decides nothing"
    assert not is_certain(None, None, 3), "a loss that is not finite"
    assert is_certain(2.27, 1.0, 30)
    assert not is_certain(2.25, 1.0, 30), "more than ten: as wide as for ten"


def comparison(*gaps: tuple[float, float]) -> dict[str, object]:
    """What `differences_of` gives of a pair of runs for each pair of numbers: the differences of zh and en."""
    return {
        "pairs": [
            {
                "domains": {
                    name: {"difference": {"nats_per_token": g}, "tokens": 100}
                    for name, g in zip(("zh", "en"), pair, strict=True)
                }
            }
            for pair in gaps
        ],
        "mean": {
            name: {
                "nats_per_token": float(np.mean(of)),
                "se": float(np.std(of, ddof=1) / len(of) ** 0.5),
                "se_of_text": 0.1,
            }
            for name, of in zip(("zh", "en"), np.array(gaps).T, strict=True)
        },
    }


def test_the_words_stand_where_they_belong_and_domains_count_the_same_in_the_mean():
    found = comparison((-1.0, 0.3), (-1.1, -0.2), (-1.2, -0.4))
    mean, error = mean_over_domains(found)
    by_seed = [-0.35, -0.65, -0.8]
    assert mean == pytest.approx(np.mean(by_seed))
    assert error == pytest.approx(np.std(by_seed, ddof=1) / math.sqrt(3))
    held_out = {"zh": 5.0, "en": 4.0}
    variant = {"losses": {"1": 4.5}, "best": "1", "held_out": held_out}
    *_, zh, en, both = format_variants({"variants": {"a": variant, "b": variant}, "against": {"b": found}}).splitlines()
    assert "certain" not in zh
    assert en.endswith("not certain")
    assert both.split()[:4] == ["mean", "b", "4.500", "4.500"]
    assert "certain" not in both, "0.6 is 4.5 errors"


def logged(run: Path, nats: float, digest: str = "same") -> Path:
    loss = HeldOutLoss(np.array([nats, nats]), np.full(2, 10.0), np.full(2, 30.0), 7.0, digest)
    run.mkdir(parents=True)
    lines = [{"kind": "run", "step": 0}, *(evaluation_line(step, {"zh": loss}) for step in (0, 4))]
    (run / "metrics.jsonl").write_text("".join(map(sealed_line, lines)), encoding="utf-8")
    return run


def test_losses_of_logs_are_those_of_the_last_evaluation_and_of_the_same_samples(tmp_path):
    first, second = logged(tmp_path / "first", 40.0), logged(tmp_path / "second", 50.0)
    found = last_logged([first, second])
    assert found[first]["zh"].minus(found[second]["zh"]).nats.mean == pytest.approx(-1.0)
    other = logged(tmp_path / "other", 40.0, "another")
    with pytest.raises(ConfigError, match=f"{other} was not evaluated on the samples of {first}; train both on the"):
        last_logged([first, other])
