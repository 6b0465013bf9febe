"""Forgetting is measured where the parent's text is there, said to be skipped where it is not, and shown as what it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from experiments.tiny import tiny_config
from pangu_sigma.finetune.forgetting import format_forgetting, measure_forgetting
from pangu_sigma.stored.open import open_model


def row(before: float | None, after: float | None, change: float | None, changed: int = 1) -> dict[str, Any]:
    difference = {"nats_per_token": change, "se": None}
    return {"before": {"loss": before}, "after": {"loss": after}, "difference": difference, "changed": changed}


def cells(domain: dict[str, Any]) -> list[str]:
    return format_forgetting({"domains": {"zh": domain}}).splitlines()[1].split()


def test_what_cannot_be_measured_is_said(tiny_run, tmp_path):
    opened = open_model(tiny_run, "run")
    run = SimpleNamespace(path=tiny_run, config=tiny_config(tmp_path / "moved"), tokenizer=opened.tokenizer)
    found = measure_forgetting(SimpleNamespace(run=run), 8)
    assert "moved" in found["skipped"]
    assert format_forgetting(found) == f"forgetting was not measured: {found['skipped']}"


def test_the_table_has_each_domain_before_and_after():
    assert cells(row(3.0, 3.25, 0.25)) == ["zh", "3.0000", "3.2500", "0.2500", "–"]


def test_a_domain_of_which_no_sample_changed_is_exactly_0_and_no_other_one_is():
    assert cells(row(3.0, 3.0, 0.0, changed=0))[3:5] == ["exactly", "0"]
    assert cells(row(3.0, 3.0, -1e-7))[3] == "0.0000"


def test_a_loss_after_that_is_not_finite_is_never_silent():
    text = format_forgetting({"domains": {"zh": row(3.0, None, None)}})
    assert "zh is lost: its loss is not finite any more; lower train.optimizer.peak_lr" in text
