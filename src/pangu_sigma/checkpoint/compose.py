"""Composer of a checkpoint's files from existing arrays, tensor by tensor and without a network, for models larger than memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.parts import EXPERTS, LOSS_SCALE, OPTIMIZER, ROWS, WEIGHTS, Files, SavedArray
from pangu_sigma.config import Config
from pangu_sigma.model.arrays import FIRST_ROW_SCALE, ROW_ARRAYS, dense_shapes, row_scale_shapes, stored_shapes
from pangu_sigma.ranks.layout import share_of

Find = Callable[[str, str, tuple[int, ...]], LazyArray | None]
"""find(shard, name, shape) returns the array of that name and shape; None for Adam state and loss scale of a new run, and for rows
if no token met one. The shape of the keys of rows, whose number only the model knows, is asked for as ()."""


def saved_arrays(config: Config) -> set[tuple[str, str]]:
    """Return (shard, name) of each array of a checkpoint. Pure Python."""
    arrays = {(OPTIMIZER, "step"), (LOSS_SCALE, "value"), (LOSS_SCALE, "good_steps")}
    for name in dense_shapes(config):
        arrays |= {(WEIGHTS, name), (OPTIMIZER, f"{name}.moment"), (OPTIMIZER, f"{name}.variance")}
    for key in stored_shapes(config):
        _, segment, name = key.split(".")
        arrays |= {(f"{EXPERTS}{segment}", n) for n in (name, f"{name}.moment", f"{name}.variance", "step")}
    entries = range(len(config.model.rows))
    return arrays | {(f"{ROWS}{entry}", name) for entry in entries for name in ("keys", *ROW_ARRAYS)}


def compose(config: Config, find: Find) -> Files:
    """Return the files of a checkpoint of `config` in one process, with the names, shapes and dtypes that training saves.

    find: function from (shard, name, shape) to the array, or to None for what is to be as in a new run: see `Find`.
    """
    from pangu_sigma.ecss.store import segment_arrays

    config = config.on_one_rank()
    dense, scales = dense_shapes(config), row_scale_shapes(config.model.layers)
    files: Files = {
        WEIGHTS: {name: SavedArray.whole(_weight(find, name, shape, name in scales)) for name, shape in dense.items()}
    }
    for segment in share_of(config, 0).routed:
        shard = f"{EXPERTS}{segment.number}"
        files[shard] = {}
        for spec in segment_arrays(config, segment):
            found = find(shard, spec.name, spec.shape)
            if found is None and spec.kind == "weight":
                raise KeyError(f"{shard}: {spec.name}")
            files[shard][spec.name] = SavedArray.whole(found or LazyArray.zeros(spec.shape, spec.dtype))
    for e, entry in enumerate(config.model.rows):
        files[f"{ROWS}{e}"] = _rows(find, f"{ROWS}{e}", entry.width)
    state = {f"{name}.{kind}": shape for kind in ("moment", "variance") for name, shape in dense.items()}
    files[OPTIMIZER] = {
        name: SavedArray.whole(find(OPTIMIZER, name, shape) or LazyArray.zeros(shape, "float32"))
        for name, shape in state.items()
    }
    files[OPTIMIZER]["step"] = SavedArray.whole(find(OPTIMIZER, "step", (1,)) or LazyArray.zeros((1,), "int32"))
    initial = LazyArray.of(np.array(config.train.first_loss_scale, np.float32))
    files[LOSS_SCALE] = {
        "value": SavedArray.whole(find(LOSS_SCALE, "value", ()) or initial),
        "good_steps": SavedArray.whole(find(LOSS_SCALE, "good_steps", ()) or LazyArray.zeros((), "int32")),
    }
    return files


def _rows(find: Find, shard: str, width: int) -> dict[str, SavedArray]:
    keys = find(shard, "keys", ()) or LazyArray.zeros((0,), "int64")
    arrays = {"keys": keys}
    for name in ROW_ARRAYS:
        shape, dtype = (keys.shape, "int32") if name == "step" else ((*keys.shape, width), "float32")
        found = find(shard, name, shape)
        if found is None and name == "weight" and keys.size:
            raise KeyError(f"{shard}: {name}")
        arrays[name] = found or LazyArray.zeros(shape, dtype)
    return {name: SavedArray.whole(array) for name, array in arrays.items()}


def _weight(find: Find, name: str, shape: tuple[int, ...], scale: bool) -> LazyArray:
    """Return a dense weight. scale: True for a scale of rows, which begins anew where there is none."""
    found = find(WEIGHTS, name, shape)
    if found is None and scale:
        return LazyArray.of(np.full(shape, FIRST_ROW_SCALE, np.float32))
    if found is None or found.shape != shape:
        raise KeyError(f"{WEIGHTS}: {name} of shape {shape}")
    return found
