"""The summary says what the log says."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.edited import edit_evaluations
from helpers.losses import held_out_losses

from experiments.tiny import STEPS
from pangu_sigma.config import ConfigError
from pangu_sigma.data.manifest import load_manifest
from pangu_sigma.held_out.losses import losses_of
from pangu_sigma.sealed import sealed_line
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.log.metrics import FILE, read_metrics
from pangu_sigma.training.log.summary import (
    compare_logs,
    evaluation_of,
    format_divergence,
    format_rows,
    format_summary,
    summarise,
)


def test_the_summary_says_what_the_log_says(tiny_data, tiny_run):
    actual, (before, after) = summarise(tiny_run), held_out_losses(tiny_run)
    records = load_manifest(tiny_data).domains
    samples = {name: (record.train.tokens - 1) // 32 for name, record in records.items()}
    assert actual["steps"] == STEPS
    for name, losses in actual["domains"].items():
        assert (losses["loss_before"], losses["loss_after"]) == (before[name], after[name])
        assert 0 < losses["unigram"] < math.log(2 * 640)
        assert 0 < losses["se"] < losses["loss_after"]
        assert losses["epochs"] == pytest.approx(STEPS * 4 / 3 / samples[name], abs=2 / samples[name])
        assert 0 < losses["bits_per_byte"] < losses["loss_after"] / math.log(2), "a token is more than a byte"
    assert Path(actual["checkpoint"]).name == f"step_{STEPS:08d}"
    assert Path(actual["report"]).exists()
    assert actual["expert_load_max_over_mean"] >= 1
    steps = [line for line in read_metrics(tiny_run) if line["kind"] == "step"]
    assert actual["tokens"] == sum(line["tokens"] for line in steps) and actual["skipped"] == 0
    for name in ("tokens_per_second", "fetched_mib", "load_max_over_mean"):
        assert actual[name] == np.median([line[name] for line in steps])
    assert actual["learning_rate"] == steps[-1]["learning_rate"]
    assert "12 rows beyond parallel.capacity_factor" in format_summary(actual | {"dropped": 12})
    text = format_summary(actual)
    assert "dropped" not in text
    moved = f"{actual['fetched_mib']:.1f}, returned {actual['returned_mib']:.1f} MiB of active experts a step"
    assert f"\nECSS         fetched {moved}\n" in text
    for shown in ("zh", "en", "code", f"{after['zh']:.3f}", actual["checkpoint"]):
        assert shown in text


def test_rows_are_told_as_far_as_they_were_met():
    first, second = {"met": 1200, "stored": 5000, "collisions": None}, {"met": 900, "stored": 1000, "collisions": 1403}
    line = {"kind": "rows", "step": 8, "entries": {"0": first, "1": second}, "scales": {"0": 0.1, "1": -0.25}}
    assert format_rows(line) == [
        "rows, 0      1,200 of 5,000 met (24.00%)",
        "rows, 1      900 of 1,000 met (90.00%), about 1,403 pairs more than rows",
        "row scales   0.1, -0.25, layer by layer, after step 8",
    ]
    assert format_rows(None) == []


def diverge(line: dict) -> None:
    line["per_domain_loss"]["zh"] = line["se"]["zh"] = line["bits_per_byte"]["zh"] = None
    line["per_sample"]["zh"]["nats"] = [None] * len(line["per_sample"]["zh"]["nats"])


def test_a_run_whose_losses_are_not_finite_has_a_summary_all_the_same(tiny_run, tmp_path):
    """Every step was skipped, or the weights are NaN: the table says so with a dash."""
    run = edit_evaluations(tiny_run, tmp_path / "run", diverge)
    text = format_summary(summarise(run))
    zh = next(line for line in text.splitlines() if line.startswith("zh"))
    assert zh.split()[:4] == ["zh", "–", "–", "–"]
    differences, text = compare_logs(tiny_run, run)
    assert (differences["zh"]["nats_per_token"], differences["en"]["nats_per_token"]) == (None, 0.0)
    zh = next(line for line in text.splitlines() if line.startswith("zh"))
    assert zh.split()[4:10] == ["not", "finite", *["–"] * 4]


def test_before_and_after_of_other_samples_are_said_to_be(tiny_run, tmp_path):
    def other_text(line: dict) -> None:
        if line["step"] == 0:
            line["held_out"] = dict.fromkeys(line["held_out"], "0")

    assert "is of other held-out samples" not in format_summary(summarise(tiny_run))
    run = edit_evaluations(tiny_run, tmp_path / "run", other_text)
    assert "before       is of other held-out samples" in format_summary(summarise(run))


def test_losses_that_are_not_those_of_the_checkpoint_are_said_to_be_older(tiny_run, tmp_path):
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    lines = [line for line in read_metrics(copy) if line["kind"] != "evaluation" or line["step"] < STEPS]
    (copy / FILE).write_text("".join(map(sealed_line, lines)), encoding="utf-8")
    at = max(line["step"] for line in lines if line["kind"] == "evaluation")
    assert f"after        is of step {at}, " in format_summary(summarise(copy))
    assert "after        is of" not in format_summary(summarise(tiny_run))


def test_a_run_without_a_checkpoint_has_no_summary_yet(tiny_run, tmp_path):
    copy = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(ConfigError, match="no checkpoint or no losses to report yet; train it first"):
        summarise(copy)


def test_a_loss_that_ends_above_that_of_step_0_in_all_domains_is_a_divergence():
    def log(*losses: tuple[float, float | None], held_out: str = "") -> list[dict]:
        named = [dict(zip(("zh", "en"), each, strict=True)) for each in losses]
        return [
            {"kind": "evaluation", "step": step, "per_domain_loss": each, "held_out": held_out and step}
            for step, each in enumerate(named)
        ]

    assert format_divergence(log((9.026, 9), (3, 4), (12.3, 1e10)), 1e3) == (
        "the held-out loss ended above that of step 0 in all domains (zh 9.026 → 12.3, en 9 → 1e+10): the training diverged; "
        "lower train.optimizer.peak_lr=1000"
    )
    assert "en 9 → inf" in format_divergence(log((9, 9), (10, None)), 1)
    for fine in (log((9, 9), (12, 8)), log((9, 9)), [], log((9, 9), (12, 12))[1:], log((9, 9), (10, 10), held_out="a")):
        assert format_divergence(fine, 1) == ""


def test_the_difference_is_of_the_checkpoints_that_are_there(tiny_run, tmp_path):
    """A tuned run keeps its best checkpoint, after which the log goes on."""
    lines = [{"step": step} for step in (0, 2, STEPS, STEPS + 5)]
    newest = open_model(tiny_run, "run").newest
    assert evaluation_of(newest, lines)["step"] == STEPS
    assert evaluation_of(newest, lines[:2])["step"] == 2
    assert evaluation_of(newest, []) is None


def test_a_damaged_checkpoint_is_told_once(tiny_run, tmp_path, caplog):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (open_model(run, "run").newest.path / "seal.json").write_text("{}")
    summarise(run)
    assert caplog.text.count("is used in its place") == 1


def test_a_difference_is_paired_where_both_logs_have_the_samples(tiny_run, tmp_path):
    def lose_more(line: dict) -> None:
        """Half a nat more a token in every sample."""
        for name, units in line["per_sample"].items():
            pairs = zip(units["nats"], units["tokens"], strict=True)
            units["nats"] = [nats + 0.5 * tokens for nats, tokens in pairs]
            line["per_domain_loss"][name] = sum(units["nats"]) / sum(units["tokens"])

    differences, text = compare_logs(tiny_run, edit_evaluations(tiny_run, tmp_path / "worse", lose_more))
    losses = losses_of([line for line in read_metrics(tiny_run) if line["kind"] == "evaluation"][-1])
    for name, loss in losses.items():
        assert differences[name]["nats_per_token"] == pytest.approx(-0.5, abs=1e-5)
        assert differences[name]["se"] == pytest.approx(0, abs=1e-5), "the same in every sample"
        bits = -0.5 * loss.tokens_U.sum() / loss.bytes_U.sum() / math.log(2)
        assert differences[name]["bits_per_byte"] == pytest.approx(bits, rel=1e-4)
        cells = next(line for line in text.splitlines() if line.startswith(name)).split()
        assert float(cells[5]) == pytest.approx(-0.5, abs=1e-4)
    assert "not compared" not in text


def test_a_difference_that_cannot_be_paired_says_what_measures_it(tiny_run, tmp_path):
    run = edit_evaluations(
        tiny_run, tmp_path / "run", lambda line: line.update(held_out=dict.fromkeys(line["held_out"], "0"))
    )
    actual, text = compare_logs(tiny_run, run)
    assert actual == {}, "no number"
    assert "not compared: zh, en, code: the logs have no losses of the same samples" in text
    assert f"pangu-sigma evaluate {tiny_run} --against {run} measures both" in text


def test_a_domain_that_one_run_lacks_is_what_is_said(tiny_run, tmp_path):
    def without_zh(line: dict) -> None:
        for values in line.values():
            if isinstance(values, dict):
                values.pop("zh", None)

    run = edit_evaluations(tiny_run, tmp_path / "run", without_zh)
    for one, other in ((tiny_run, run), (run, tiny_run)):
        actual, text = compare_logs(one, other)
        assert actual.keys() == {"en", "code"} and actual["en"]["nats_per_token"] == 0.0
        assert text.splitlines()[-1].startswith("not compared: zh: ")
