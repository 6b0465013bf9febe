"""All variants are tuned alike, each at the best rate of its first seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cases import CaseError
from experiments.finetune_packages import tuning

TASKS = ("translation_en_zh", "qa")
OPTIONS = {"steps": 40, "tune_steps": 10, "seeds": [1, 4], "rates": ["1e-3", "2e-3"]}


def test_variants_of_a_task_differ_in_what_learns_alone(recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compared = {}
    monkeypatch.setattr(tuning, "write_packaged_tasks", lambda tasks, *_: dict.fromkeys(tasks))
    monkeypatch.setattr(tuning, "format_splits", lambda task, _: f"splits of {task}")
    monkeypatch.setattr(tuning, "best_rate", lambda tried: list(tried)[1])
    monkeypatch.setattr(tuning, "compare_tuned", lambda variants, test, answers: (variants, test))
    monkeypatch.setattr(tuning, "write_tuned", lambda task, found, _: compared.update({task: found}))
    first, *_ = tuning.finetune_packages(tmp_path, TASKS, **OPTIONS)
    assert first == "splits of translation_en_zh\nsplits of qa"
    assert (tmp_path / "tasks.txt").read_text() == f"{first}\n"

    expected = [f"{model}_{seed}" for seed in (1, 4) for model in ("sigma", "dense")]
    for task in TASKS:
        expected += [f"{task}_{name}_{end}" for name in tuning.LEARNS for end in ("1_1e-3", "1_2e-3", "4_2e-3")]
    assert list(recorded.cases) == expected
    for seed in (1, 4):
        own = {"model.dense_layers", "model.rre_layers"}
        assert recorded.differing(f"sigma_{seed}", f"dense_{seed}") == own, "pre-trained alike"
    schedules = set()
    for case in expected[4:]:
        task, name, seed, rate = case.rsplit("_", 3)
        _, parent, asked, run = recorded.cases[case]
        assert (parent.name, run.name) == (f"{'dense' if name == 'dense' else 'sigma'}_{seed}", case)
        assert (asked.task, asked.learn, asked.domain) == (task, tuning.LEARNS[name], "en" if task == "qa" else None)
        assert (asked.train_file, asked.dev_file) == tuple(
            tmp_path / "tasks" / task / f"{n}.jsonl" for n in ("train", "dev")
        )
        keys = dict(asked.overrides)
        assert (keys.pop("seed"), keys.pop("train.optimizer.peak_lr")) == (int(seed), float(rate))
        schedules.add((task, tuple(keys.items())))
    assert len(schedules) == 2, "the same for all variants of a task"
    assert all(("train.steps", 12) in keys and ("train.eval_interval", 4) in keys for _, keys in schedules)
    variants, test = compared["qa"]
    assert [variant.name for variant in variants] == list(tuning.TITLES.values())
    assert [run.name for run in variants[1].runs] == ["qa_slot_1_2e-3", "qa_slot_4_2e-3"]
    assert test == tmp_path / "tasks" / "qa" / "test.jsonl"


def test_no_steps_are_refused(tmp_path: Path):
    with pytest.raises(CaseError, match="both need a number of at least 1"):
        list(tuning.finetune_packages(tmp_path, TASKS, **OPTIONS | {"tune_steps": 0}))
