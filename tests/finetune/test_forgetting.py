"""Forgetting is measured where the parent's text is there, said to be skipped where it is not, and shown as what it is."""

from __future__ import annotations

from typing import Any

import pytest

from pangu_sigma.config import ConfigError
from pangu_sigma.errors import DataError
from pangu_sigma.finetune import tuning
from pangu_sigma.finetune.tuning import format_forgetting, measure_forgetting
from pangu_sigma.sealed import sealed
from pangu_sigma.stored.open import open_model


def row(before: float | None, after: float | None, change: float | None) -> dict[str, Any]:
    difference = {"nats_per_token": change, "se": None}
    return {"before": {"loss": before}, "after": {"loss": after}, "difference": difference}


@pytest.mark.parametrize("error", [ConfigError("moved"), DataError("moved")])
def test_what_cannot_be_measured_is_said(tiny_run, tmp_path, monkeypatch, error):
    def refuse(*runs):
        raise error

    monkeypatch.setattr(tuning, "compare_runs", refuse)
    parent = open_model(tiny_run, "run")
    (tmp_path / "lineage.json").write_bytes(sealed({"parent_hash": parent.hash}, record=True))
    assert format_forgetting(measure_forgetting(tmp_path, tiny_run)) == "forgetting was not measured: moved"


def test_a_parent_that_was_trained_on_is_not_compared(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "compare_runs", lambda *runs: pytest.fail("its weights are others"))
    (tmp_path / "lineage.json").write_bytes(sealed({"parent_hash": "of an earlier checkpoint"}, record=True))
    found = measure_forgetting(tmp_path, tiny_run)
    assert found == {"skipped": f"{tiny_run} was trained on after the tuning began"}


def test_the_table_has_each_domain_before_and_after_and_equal_losses_alone_are_exactly_0():
    losses = {
        "zh": row(3.0, 3.25, 0.25),
        "en": row(3.0, 3.0, 0.0),
        "code": row(3.0, 3.0, -1e-7),
        "law": row(3.0, None, None),
    }
    lines = format_forgetting({"domains": losses}).splitlines()
    assert lines[1].split() == ["zh", "3.0000", "3.2500", "0.2500", "–"]
    assert lines[2].split()[3:5] == ["exactly", "0"]
    assert lines[3].split()[3] == "0.0000"
    assert lines[5] == "law is lost: its loss is not finite any more; lower train.optimizer.peak_lr"
