"""Both models are trained by the same seeds, and compared on all held-out tokens."""

from __future__ import annotations

from pathlib import Path

from experiments.compare import dense


def test_a_seed_is_both_models_and_nothing_else_differs(recorded, tmp_path: Path, monkeypatch):
    compared = []
    monkeypatch.setattr(dense, "compare_runs", lambda *runs, all: compared.append((*runs, all)))
    monkeypatch.setattr(dense, "format_differences", lambda _: "a table")
    text = dense.compare_dense(tmp_path, [1, 3], ["train.steps=2", "data.path=data/x"])
    assert text.startswith("a table\n0 cases took")
    assert (tmp_path / "differences.txt").read_text() == "a table\n"
    names = [[f"{model}_{seed}" for seed in (1, 3)] for model in ("sigma_tiny", "alpha_tiny")]
    assert compared == [(*([tmp_path / name for name in some] for some in names), True)]
    assert list(recorded.cases) == ["sigma_tiny_1", "alpha_tiny_1", "sigma_tiny_3", "alpha_tiny_3"]
    for seed in (1, 3):
        network = {"name", "model.dense_layers", "model.rre_layers"}
        assert recorded.differing(f"sigma_tiny_{seed}", f"alpha_tiny_{seed}") == network
        config = recorded.config(f"sigma_tiny_{seed}")
        assert (config.seed, config.routing.seed, config.train.steps) == (seed, seed - 1, 2)
    assert recorded.differing("sigma_tiny_1", "sigma_tiny_3") == {"seed", "routing.seed"}
    assert [config.data.path for config in recorded.prepared] == ["data/x"]
