"""Forgetting is measured where the parent's text is there, said to be skipped where it is not, and shown as what it is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.tiny import STEPS, TINY_ROWS, tiny_config
from pangu_sigma.checkpoint.checkpoint import load_checkpoint
from pangu_sigma.checkpoint.parts import SavedArray
from pangu_sigma.finetune.forgetting import changed_domains, format_forgetting, measure_forgetting
from pangu_sigma.stored.open import open_model


def row(before: float | None, after: float | None, change: float | None, changed: bool = True) -> dict[str, Any]:
    difference = {"nats_per_token": change, "se": None}
    losses = {"before": {"loss": before}, "after": {"loss": after}}
    return {**losses, "difference": difference, "changed": changed, "logged": changed}


def cells(domain: dict[str, Any]) -> list[str]:
    return format_forgetting({"domains": {"zh": domain}}).splitlines()[1].split()


def test_what_cannot_be_measured_is_said(tiny_run, tmp_path):
    opened = open_model(tiny_run, "run")
    run = SimpleNamespace(path=tiny_run, config=tiny_config(tmp_path / "moved"), tokenizer=opened.tokenizer)
    found = measure_forgetting(SimpleNamespace(run=run), opened)
    assert "moved" in found["skipped"]
    assert format_forgetting(found) == f"forgetting was not measured: {found['skipped']}"


@pytest.mark.parametrize(
    ("file", "name", "at", "changed"),
    [
        ("experts_layer_1", "w2", 3, {"en"}),
        ("experts_layer_0", "b1", 0, {"zh"}),
        ("experts_layer_1", "w2.variance", 3, set()),
        ("experts_layer_1", "step", 3, set()),
        ("dense", "embedding", 639, {"zh"}),
        ("dense", "embedding", 640, {"en", "code"}),
        ("dense", "norm.gain", 0, {"zh", "en", "code"}),
    ],
)
def test_a_weight_that_changes_names_the_domains_that_use_it(tiny_run, file, name, at, changed):
    """Experts of a domain, its slot, which domains share, or what all share; Adam's state changes no loss."""
    root = tiny_run / "checkpoints"
    before, after = (load_checkpoint(root / f"step_{STEPS:08d}", verified=False) for _ in range(2))
    assert changed_domains(tiny_config(tiny_run), before, after) == set()
    values = after.files[file][name].values
    values[at] = values[at] + 1
    assert changed_domains(tiny_config(tiny_run), before, after) == changed


@pytest.mark.parametrize(("entry", "changed"), [(0, {"zh", "en", "code"}), (2, {"en"})])
def test_a_row_that_changes_or_is_met_names_its_domain_or_all(entry, changed):
    config = tiny_config(Path(), model={"rows": TINY_ROWS})

    def saved(keys: list[int], weights: list[float]) -> SimpleNamespace:
        arrays = {"keys": np.array(keys), "weight": np.outer(weights, np.ones(8))}
        none = {"keys": np.zeros(0, int), "weight": np.zeros((0, 8))}
        of_entries = [arrays if e == entry else none for e in range(3)]
        named = ({name: SavedArray.whole(values) for name, values in each.items()} for each in of_entries)
        return SimpleNamespace(files={f"rows_{e}": each for e, each in enumerate(named)})

    before = saved([5, 700], [1.0, 2.0])
    assert changed_domains(config, before, saved([5, 700], [1.0, 2.0])) == set()
    assert changed_domains(config, before, saved([5, 700, 1399], [1.0, 2.0, 0.0])) == set(), "met, and still 0"
    assert changed_domains(config, before, saved([5, 700], [1.0, 2.5])) == changed
    assert changed_domains(config, before, saved([5, 700, 1399], [1.0, 2.0, 0.5])) == changed


def test_the_table_has_each_domain_before_and_after():
    assert cells(row(3.0, 3.25, 0.25)) == ["zh", "3.0000", "3.2500", "0.2500", "–"]


def test_a_domain_of_which_no_weight_changed_is_exactly_0_and_no_other_one_is():
    assert cells(row(3.0, 3.0, 0.0, changed=False))[3:5] == ["exactly", "0"]
    assert cells(row(3.0, 3.0, -1e-7))[3] == "0.0000"


def test_where_the_losses_before_are_from_is_said():
    heads = [
        format_forgetting({"domains": {"zh": row(3.0, 3.0, 0.0, logged)}}).splitlines()[0] for logged in (True, False)
    ]
    assert [head.endswith("; before: from its log") for head in heads] == [True, False]


def test_a_loss_after_that_is_not_finite_is_never_silent():
    text = format_forgetting({"domains": {"zh": row(3.0, None, None)}})
    assert "zh is lost: its loss is not finite any more; lower train.optimizer.peak_lr" in text
