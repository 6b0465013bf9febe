"""Forgetting is measured where the parent and its text are there, and said to be skipped where they are not."""

from __future__ import annotations

import shutil

from experiments.tiny import tiny_config
from pangu_sigma.checkpoint.model_files import write_config
from pangu_sigma.finetune.forgetting import format_forgetting, measure_forgetting
from pangu_sigma.stored.open import open_model


def test_what_cannot_be_measured_is_said(tiny_run, tmp_path):
    known = open_model(tiny_run, "run").hash
    changed = measure_forgetting(tiny_run, tiny_run, "another hash")
    assert format_forgetting(changed) == f"forgetting was not measured: {tiny_run} has been trained on since"
    away = shutil.copytree(tiny_run, tmp_path / "run")
    write_config(away, tiny_config(tmp_path / "moved"), "run")
    assert "moved" in measure_forgetting(away, tiny_run, known)["skipped"]
    assert "is not a run folder" in measure_forgetting(tiny_run, tmp_path / "gone", known)["skipped"]


def test_the_table_has_each_domain_before_and_after():
    own = {
        "before": {"loss": 3.0},
        "after": {"loss": 3.25},
        "difference": {"nats_per_token": 0.25, "se": None},
    }
    table = format_forgetting({"domains": {"zh": own}}).splitlines()
    assert table[1].split() == ["zh", "3.0000", "3.2500", "0.2500", "–"]
