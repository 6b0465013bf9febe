"""A coordinate search: one setting after the other, from the best so far; what was tried is not trained again."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cases import CaseError, Cases
from experiments.compare import search
from experiments.compare.search import SETTINGS, search_tiny, settings_of
from pangu_sigma.sealed import sealed_line

SHIPPED = tuple(values[0] for values in SETTINGS.values())


def log_a_run(cases: Cases, name: str, *work: object) -> None:
    """A training that did not run: high rates and long warm-ups are good, and independent experts; 4e-3 and more diverge."""
    _, _, config, run = work
    rate, warmup = config.train.optimizer.peak_lr, config.train.optimizer.warmup_steps
    zh = None if rate >= 4e-3 else 5 - 100 * rate - warmup / 100 - (config.model.expert_init == "independent")
    lines = [{"kind": "evaluation", "step": 9, "per_domain_loss": {"zh": zh, "en": 3.0}}]
    lines += [{"kind": "step", "step": 9, "tokens_per_second": 1000.0}]
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(map(sealed_line, lines)))


def test_settings_are_tried_from_the_best_so_far_and_the_dense_model_has_none_of_experts(
    recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def run(cases: Cases, name: str, *work: object) -> None:
        recorded.cases[name] = work
        log_a_run(cases, name, *work)

    monkeypatch.setattr(Cases, "run", run)
    text = search_tiny(tmp_path, [1, 2], 140, ["dense", "own_own"], overrides=["model.hidden=48"])
    table = (tmp_path / "search.txt").read_text()
    assert text.startswith(table)
    rows = [line.split() for line in table.splitlines()]
    assert rows[0][:5] == ["form", "peak_lr", "warmup_steps", "eps_experts", "expert_init"]
    best = [row for row in rows if row[-1] == "*"]
    assert best[0] == ["dense", "2e-3", "100", "1e-20", "replicated", "3.800", "3.000", "3.400", "1,000", "*"]
    assert best[1][:6] == ["own_own", "2e-3", "100", "1e-20", "independent", "2.800"]
    tried = {name.rpartition("_")[0] for name in recorded.cases}
    numbers = [len(values) for values in SETTINGS.values()]
    assert len(recorded.cases) == 2 * len(tried) == 2 * (len(rows) - 1)
    assert len(tried) == (sum(numbers) - 3) + (numbers[0] + numbers[1] - 1)
    assert "own_own_2e-3_100_1e-8_replicated" in tried, "ε at the best rate and warm-up"
    config = recorded.config("own_own_2e-3_100_1e-20_independent_2")
    assert (config.seed, config.model.segments, config.model.hidden) == (2, ["own", "own"], 48)
    optimizer = config.train.optimizer
    assert (optimizer.peak_lr, optimizer.warmup_steps, optimizer.decay_steps) == (2e-3, 100, 40)
    assert recorded.config(f"dense_{'_'.join(SHIPPED)}_1").model.rre_layers == 0
    with pytest.raises(CaseError, match="--steps 100: a number above 100"):
        search_tiny(tmp_path, [1], 100, ["dense"])


def test_the_first_values_are_those_that_are_shipped():
    assert search.tiny(settings_of(SHIPPED, 500)) == search.tiny()
