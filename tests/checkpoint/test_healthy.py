"""The checkpoint to go back to is one that was examined: whole, and finite in every array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pangu_sigma.checkpoint import saver as saver_module
from pangu_sigma.checkpoint.checkpoint import last_healthy
from pangu_sigma.checkpoint.format import Identity, UnhealthyState
from pangu_sigma.checkpoint.parts import SavedArray
from pangu_sigma.checkpoint.saver import save_checkpoint
from pangu_sigma.ranks.ranks import SINGLE_PROCESS


def save(root: Path, step: int, value: float = 1.0, name: str = "bias.variance") -> Path:
    """A checkpoint of two arrays, one of which ends with a value."""
    bias = np.array([1.0, value], np.float32)
    files = {"dense": {"weight": SavedArray.whole(np.ones(3, np.float32)), name: SavedArray.whole(bias)}}
    return save_checkpoint(root, step, files, {}, Identity("vocabulary", "routing", {}), 5)


def poisoned(root: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sealed checkpoint with an infinite variance, as only another program writes it."""
    with monkeypatch.context() as patch:
        patch.setattr(saver_module.Watch, "found", [])
        return save(root, step, np.inf)


def test_the_last_healthy_checkpoint_is_older_than_damaged_and_poisoned_ones(tmp_path, monkeypatch):
    root = tmp_path / "checkpoints"
    healthy = save(root, 1)
    ill = [damaged := save(root, 3), poisoned(root, 2, monkeypatch)]
    (damaged / "dense.safetensors").write_bytes(b"")
    assert last_healthy(root, SINGLE_PROCESS) == (healthy, ill)
    (healthy / "dense.safetensors").unlink()
    assert last_healthy(root, SINGLE_PROCESS) == (None, [*ill, healthy])
    assert last_healthy(tmp_path / "nothing", SINGLE_PROCESS) == (None, [])


def test_a_save_that_is_refused_names_only_a_checkpoint_that_was_examined(tmp_path, monkeypatch):
    healthy, ill = save(tmp_path, 1), poisoned(tmp_path, 2, monkeypatch)
    with pytest.raises(
        UnhealthyState, match=f"all finite is {healthy}: remove {ill}, and start the same command again"
    ):
        save(tmp_path, 3, np.nan)
    (healthy / "dense.safetensors").unlink()
    with pytest.raises(UnhealthyState, match=f"No checkpoint in {tmp_path} has only finite values"):
        save(tmp_path, 3, np.nan)
