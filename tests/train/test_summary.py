from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
from helpers.runs import held_out_losses
from helpers.tiny import STEPS

from pangu_sigma.config import ConfigError
from pangu_sigma.train.summary import format_comparison, format_summary, summarise


def test_the_summary_says_what_the_log_says(tiny_run):
    summary, (before, after) = summarise(tiny_run), held_out_losses(tiny_run)
    assert summary["steps"] == STEPS
    for name, losses in summary["domains"].items():
        assert (losses["loss_before"], losses["loss_after"]) == (before[name], after[name])
        assert 0 < losses["unigram"] < math.log(2 * 640)
    assert Path(summary["checkpoint"]).name == f"step_{STEPS:08d}"
    assert Path(summary["report"]).exists()
    assert summary["expert_load_max_over_mean"] >= 1
    assert "12 rows beyond parallel.capacity_factor" in format_summary(summary | {"dropped": 12})
    text = format_summary(summary)
    assert "dropped" not in text
    for shown in ("zh", "en", "code", f"{after['zh']:.3f}", summary["checkpoint"]):
        assert shown in text


def test_two_runs_are_compared_domain_by_domain(tiny_run):
    one = summarise(tiny_run)
    other = {**one, "domains": {n: {**d, "loss_after": d["loss_after"] + 1} for n, d in one["domains"].items()}}
    lines = format_comparison(one, other).splitlines()
    for name in ("zh", "en", "code"):
        assert "-1.000" in next(line for line in lines if line.startswith(name))


def test_a_run_without_a_checkpoint_has_no_summary_yet(tiny_run, tmp_path):
    copy = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(ConfigError, match="no checkpoint and no losses to report yet; train it first"):
        summarise(copy)
