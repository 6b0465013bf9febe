"""All models are trained by the same seeds; their networks, rates and, for one of them, steps are the only differences."""

from __future__ import annotations

from pathlib import Path

from experiments.compare import dense


def test_a_seed_is_every_model_and_only_network_rate_and_time_differ(recorded, tmp_path: Path, monkeypatch):
    compared = []
    monkeypatch.setattr(dense, "write_methods", lambda *found: compared.append(found) or "a table")
    text = dense.compare_dense(tmp_path, [1, 3], overrides=["train.steps=100", "data.path=data/x"])
    assert text.startswith("a table\n0 cases took")
    models = ["sigma_tiny", "sigma_paper_tiny", "dense", "dense_same_time"]
    assert list(recorded.cases) == [f"{model}_{seed}" for seed in (1, 3) for model in models]
    ((trained, sizes, folder),) = compared
    assert (
        [variant.name for variant in trained]
        == list(sizes)
        == ["sigma_tiny", "sigma_paper_tiny", "dense", "dense_same_time"]
    )
    assert folder == tmp_path and [*trained[3].runs.values()] == [
        [tmp_path / f"dense_same_time_{seed}" for seed in (1, 3)]
    ]
    differing = recorded.differing("sigma_paper_tiny_1", "dense_1")
    assert {key for key in differing if not key.startswith("model.rows")} <= dense.ALPHA_BEST.keys()
    assert recorded.differing("sigma_tiny_1", "sigma_tiny_3") == {"seed", "routing.seed"}
    assert recorded.differing("dense_1", "dense_same_time_1") == {"train.steps", "train.optimizer.decay_steps"}
    longer = recorded.config("dense_same_time_1").train
    assert longer.steps == round(100 * dense.STEP_TIME) == longer.optimizer.warmup_steps + longer.optimizer.decay_steps
    assert [config.data.path for config in recorded.prepared] == ["data/x"]
    active = {recorded.config(f"{model}_1").num_params().active_per_token for model in models if "paper" not in model}
    assert len(active) == 1, "all with rows have the same active size"
