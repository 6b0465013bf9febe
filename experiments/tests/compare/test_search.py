"""A coordinate search: one setting after the other, from the best so far; what was tried is not trained again."""

from __future__ import annotations

import math

import pytest

from experiments.cases import CaseError
from experiments.compare import search
from experiments.compare.search import SETTINGS, search_tiny, settings_of


def test_settings_are_tried_from_the_best_so_far_and_the_dense_model_has_none_of_experts(
    recorded, tmp_path, monkeypatch
):
    def loss(runs) -> float:
        return sum(abs(math.log(float(value))) for run in runs for value in run.name.split("_")[-5:-3]) + (
            "independent" not in runs[0].name
        )

    monkeypatch.setattr(search, "mean_loss", loss)
    monkeypatch.setattr(search, "format_search", lambda tried, best: str(best))
    text = search_tiny(tmp_path, [1, 2], 140, ["dense", "own_own"], overrides=["model.hidden=48"])
    best = {"dense": ("8e-3", "25", "1e-20", "replicated"), "own_own": ("8e-3", "25", "1e-20", "independent")}
    assert text.startswith(str(best))
    assert (tmp_path / "search.txt").read_text() == f"{best}\n"
    tried = {name.rpartition("_")[0] for name in recorded.cases}
    numbers = [len(values) for values in SETTINGS.values()]
    assert len(recorded.cases) == 2 * len(tried)
    assert len(tried) == (sum(numbers) - 3) + (numbers[0] + numbers[1] - 1)
    assert "own_own_8e-3_25_1e-8_replicated" in tried, "ε at the best rate and warm-up"
    config = recorded.config("own_own_8e-3_25_1e-20_independent_2")
    assert (config.seed, config.model.segments, config.model.hidden) == (2, ["own", "own"], 48)
    optimizer = config.train.optimizer
    assert (optimizer.peak_lr, optimizer.warmup_steps, optimizer.decay_steps) == (8e-3, 25, 115)
    with pytest.raises(CaseError, match="--steps 100: a number above 100"):
        search_tiny(tmp_path, [1], 100, ["dense"])
    assert recorded.config("dense_1e-3_50_1e-20_replicated_1").model.rre_layers == 0


def test_the_first_values_are_those_that_are_shipped():
    first = tuple(values[0] for values in SETTINGS.values())
    assert search.tiny(settings_of(first, 500)) == search.tiny()
