"""What is inherited, what goes on dense, and what begins with nothing learn alike; at each rate a copy of what was begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.compare import inherit
from pangu_sigma.config import Config

BEGUN = ("inherited", "segments", "continued")
RATE = "train.optimizer.peak_lr"


def test_all_variants_are_trained_alike(recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compared = []
    monkeypatch.setattr(inherit, "write_comparison", lambda first, others, folder: compared.append([first, *others]))
    for seed in (1, 3):
        for name in BEGUN:
            (tmp_path / f"{name}_{seed}").mkdir()
            (tmp_path / f"{name}_{seed}" / "weights").write_text(name)
    (tmp_path / "inherited_1_1e-3.copy").mkdir()  # what was killed while it was copied
    inherit.compare_inherited(tmp_path, [1, 3], ["1e-3", "2e-3"], overrides=["train.steps=2"])

    expected = [f"parent_{seed}" for seed in (1, 3)] + [f"{name}_{seed}" for seed in (1, 3) for name in BEGUN]
    expected += [f"{name}_{seed}_{rate}" for seed in (1, 3) for rate in ("1e-3", "2e-3") for name in inherit.WAYS]
    assert list(recorded.cases) == expected
    segments = {"model.common_experts", *(f"model.segments.{s}" for s in (1, 2, 3))}
    network, chinese = {"model.dense_layers", "model.rre_layers"}, set(inherit.chinese_only(tmp_path))
    for seed in (1, 3):
        inherited = f"inherited_{seed}"
        assert recorded.differing(inherited, f"continued_{seed}") == network
        assert recorded.differing(inherited, f"segments_{seed}") == segments
        assert chinese <= recorded.differing(f"continued_{seed}", f"parent_{seed}") | chinese
        assert recorded.cases[inherited][1] == tmp_path / f"parent_{seed}"
        for rate in ("1e-3", "2e-3"):
            assert recorded.differing(f"scratch_{seed}_{rate}", f"{inherited}_{rate}") == set()
            assert recorded.differing(inherited, f"{inherited}_{rate}") == {RATE} - (
                {RATE} if rate == "2e-3" else set()
            )
            assert recorded.config(f"{inherited}_{rate}").train.optimizer.peak_lr == float(rate)
            assert (tmp_path / f"{inherited}_{rate}" / "weights").read_text() == "inherited"
        assert not (tmp_path / f"scratch_{seed}_1e-3").exists()
        assert recorded.config(inherited).routing.seed == seed - 1
    assert [Path(config.data.path).name for config in recorded.prepared] == [tmp_path.name, f"{tmp_path.name}_zh"]
    assert [len(config.domains) for config in recorded.prepared] == [4, 1], "the parent learns Chinese only"
    assert {config.train.steps for config in recorded.prepared} == {2}
    [variants] = compared
    assert [variant.name for variant in variants] == list(inherit.WAYS.values())
    assert variants[3].runs["2e-3"] == [tmp_path / "scratch_1_2e-3", tmp_path / "scratch_3_2e-3"]


def test_what_was_inherited_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[tuple[object, ...]] = []
    monkeypatch.setattr("pangu_sigma.inherit", lambda *arguments: made.append(arguments))
    assert inherit.inherit_once(tmp_path, Config.model_construct(), tmp_path)
    assert made == []
    assert inherit.inherit_once(tmp_path, Config.model_construct(), tmp_path / "run")
    assert len(made) == 1
