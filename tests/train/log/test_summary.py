from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.edited import edit_config
from helpers.losses import held_out_losses

from experiments.tiny import STEPS
from pangu_sigma.config import ConfigError
from pangu_sigma.train.log.losses import losses_of
from pangu_sigma.train.log.metrics import FILE, read_metrics
from pangu_sigma.train.log.summary import format_comparison, format_summary, loss_differences, summarise


def test_the_summary_says_what_the_log_says(tiny_run):
    summary, (before, after) = summarise(tiny_run), held_out_losses(tiny_run)
    assert summary["steps"] == STEPS
    for name, losses in summary["domains"].items():
        assert (losses["loss_before"], losses["loss_after"]) == (before[name], after[name])
        assert 0 < losses["unigram"] < math.log(2 * 640)
        assert 0 < losses["se"] < losses["loss_after"]
        assert 0 < losses["bits_per_byte"] < losses["loss_after"] / math.log(2), "a token is more than a byte"
    assert Path(summary["checkpoint"]).name == f"step_{STEPS:08d}"
    assert Path(summary["report"]).exists()
    assert summary["expert_load_max_over_mean"] >= 1
    assert "12 rows beyond parallel.capacity_factor" in format_summary(summary | {"dropped": 12})
    text = format_summary(summary)
    assert "dropped" not in text
    for shown in ("zh", "en", "code", f"{after['zh']:.3f}", summary["checkpoint"]):
        assert shown in text


def changed_run(tiny_run: Path, folder: Path, change) -> Path:
    """A copy of the run whose evaluation lines `change` has changed."""
    run = shutil.copytree(tiny_run, folder)
    lines = read_metrics(run)
    for line in lines:
        if line["kind"] == "evaluation":
            change(line)
    (run / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return run


def lose_more(line: dict) -> None:
    """Half a nat more a token in the samples with an even number, and 1.5 in the others."""
    for name, units in line["per_sample"].items():
        pairs = zip(units["nats"], units["tokens"], strict=True)
        units["nats"] = [nats + (0.5 + number % 2) * tokens for number, (nats, tokens) in enumerate(pairs)]
        line["per_domain_loss"][name] = sum(units["nats"]) / sum(units["tokens"])


def diverge(line: dict) -> None:
    line["per_domain_loss"]["zh"] = line["se"]["zh"] = line["bits_per_byte"]["zh"] = None
    line["per_sample"]["zh"]["nats"] = [None] * len(line["per_sample"]["zh"]["nats"])


def test_a_run_whose_losses_are_not_finite_has_a_summary_all_the_same(tiny_run, tmp_path):
    """Every step was skipped, or the weights are NaN: the table says so with a dash."""
    run = changed_run(tiny_run, tmp_path / "run", diverge)
    text = format_summary(summarise(run))
    zh = next(line for line in text.splitlines() if line.startswith("zh"))
    assert zh.split()[:4] == ["zh", "–", "–", "–"]
    other = summarise(run) | {"differences": loss_differences(tiny_run, run)}
    zh = next(line for line in format_comparison(summarise(tiny_run), other).splitlines() if line.startswith("zh"))
    assert zh.split()[2:5] == ["–", "–", "–"]


def test_before_and_after_of_other_samples_are_said_to_be(tiny_run, tmp_path):
    def other_text(line: dict) -> None:
        if line["step"] == 0:
            line["held_out"] = dict.fromkeys(line["held_out"], "0")

    assert "is of other held-out samples" not in format_summary(summarise(tiny_run))
    run = changed_run(tiny_run, tmp_path / "run", other_text)
    assert "before       is of other held-out samples" in format_summary(summarise(run))


def test_a_difference_is_paired_where_both_logs_have_the_samples(tiny_run, tmp_path):
    worse = changed_run(tiny_run, tmp_path / "worse", lose_more)
    found = loss_differences(tiny_run, worse)
    for name, loss in losses_of([line for line in read_metrics(tiny_run) if line["kind"] == "evaluation"][-1]).items():
        gap_U = -(0.5 + np.arange(len(loss.tokens_U)) % 2)
        mean = np.average(gap_U, weights=loss.tokens_U)
        residuals_U = loss.tokens_U * (gap_U - mean)
        n, total = len(gap_U), loss.tokens_U.sum()
        assert found[name]["nats_per_token"] == pytest.approx(mean, abs=1e-5)
        assert found[name]["se"] == pytest.approx(math.sqrt(n / (n - 1) * (residuals_U**2).sum()) / total, rel=1e-3)
        assert found[name]["bits_per_byte"] == pytest.approx(mean * total / loss.bytes_U.sum() / math.log(2), rel=1e-4)
        assert "unpaired" not in found[name]
    text = format_comparison(summarise(tiny_run), summarise(worse) | {"differences": found})
    for name in ("zh", "en", "code"):
        cells = next(line for line in text.splitlines() if line.startswith(name)).split()
        assert float(cells[3]) == pytest.approx(found[name]["nats_per_token"], abs=1e-3)
        assert float(cells[4]) == pytest.approx(found[name]["se"], abs=1e-3)
    assert "no error" not in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"eval_batches: 2": "eval_batches: 3"}, "train.eval_batches · train.batch_size is 8 and 12 samples"),
        ({"seq_length: 32": "seq_length: 16"}, "model.seq_length is 32 and 16, so the samples are not the same"),
        ({"name: tiny": "name: other"}, "the held-out text differs"),
    ],
    ids=str,
)
def test_a_difference_that_cannot_be_paired_says_why(tiny_run, tmp_path, changes, reason):
    def other_text(line: dict) -> None:
        line["held_out"] = dict.fromkeys(line["held_out"], "0")

    run = changed_run(tiny_run, tmp_path / "run", other_text)
    edit_config(run, changes)
    found = loss_differences(tiny_run, run)
    for values in found.values():
        assert (values["nats_per_token"], values["se"]) == (0.0, None)
        assert reason in values["unpaired"]
    text = format_comparison(summarise(tiny_run), summarise(run) | {"differences": found})
    assert f"no error for zh, en, code: {found['zh']['unpaired']}" in text


def test_two_runs_are_compared_domain_by_domain(tiny_run):
    one = summarise(tiny_run)
    other = {**one, "domains": {n: {**d, "loss_after": d["loss_after"] + 1} for n, d in one["domains"].items()}}
    lines = format_comparison(one, other).splitlines()
    for name in ("zh", "en", "code"):
        assert "-1.000" in next(line for line in lines if line.startswith(name))


def test_losses_that_are_not_those_of_the_checkpoint_are_said_to_be_older(tiny_run, tmp_path):
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    lines = [line for line in read_metrics(copy) if line["kind"] != "evaluation" or line["step"] < STEPS]
    (copy / FILE).write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    at = max(line["step"] for line in lines if line["kind"] == "evaluation")
    assert f"after        is of step {at}, " in format_summary(summarise(copy))
    assert "after        is of" not in format_summary(summarise(tiny_run))


def test_a_run_without_a_checkpoint_has_no_summary_yet(tiny_run, tmp_path):
    copy = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(ConfigError, match="no checkpoint or no losses to report yet; train it first"):
        summarise(copy)
