"""What a run has left, for comparisons."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from pangu_sigma.checkpoint.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint
from pangu_sigma.stored.model import Kind, StoredModel
from pangu_sigma.stored.open import open_model


def digests(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of every array and of the state."""
    loaded = load_checkpoint(checkpoint)
    found = {
        f"{file}/{name}": hashlib.sha256(f"{a.values.dtype} {a.values.shape}".encode() + a.values.tobytes()).hexdigest()
        for file, arrays in loaded.files.items()
        for name, a in arrays.items()
    }
    return found | {"state": json.dumps(loaded.state, sort_keys=True), "step": str(loaded.step)}


def newest(run: Path) -> Checkpoint:
    """The newest whole checkpoint of a run folder."""
    found = newest_checkpoint(run / "checkpoints")
    assert found is not None, f"{run} has no checkpoint"
    return found


def opened_whole(path: Path, *kinds: Kind) -> StoredModel:
    """A model of which everything was opened: configuration, what its ids mean, receipt, every array."""
    model = open_model(path, *kinds)
    _ = model.config, model.tokenizer, model.table, model.lineage, list(model.listed())
    return model


def whole(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, put together."""
    arrays = {f"{shard}/{name}": checkpoint.array(shard, name) for shard, name in checkpoint.parts}
    return {name: np.array(array.read()) for name, array in arrays.items() if array is not None}
