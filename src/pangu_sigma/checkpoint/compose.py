"""Composer of a checkpoint's files from existing arrays, tensor by tensor and without a network, for models larger than memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.parts import EXPERTS, LOSS_SCALE, OPTIMIZER, ROWS, WEIGHTS, Files, SavedArray
from pangu_sigma.config import Config
from pangu_sigma.model.arrays import FIRST_ROW_SCALE, ROW_ARRAYS, dense_shapes, row_scale_shapes, stored_shapes

Find = Callable[[str, str, tuple[int, ...]], LazyArray | None]
"""find(shard, name, shape) returns the array of that name and shape; None for an array that is to begin as in a new run, and for
rows if no token met one. The number of rows is 0 in the shape of their keys, because only the model knows it."""


class Expected(NamedTuple):
    """Array that a checkpoint holds. first: its value in a new run; None for a weight, which must be found."""

    shape: tuple[int, ...]
    dtype: str
    first: float | None = 0


def saved_arrays(config: Config) -> dict[tuple[str, str], Expected]:
    """Return the arrays of a checkpoint by (shard, name). Rows have the length 0, and their keys come first. Pure Python."""
    moment_dtype = "uint16" if config.ecss.moments == "bfloat16" else "float32"  # bits: NumPy lacks bfloat16
    arrays = {
        (OPTIMIZER, "step"): Expected((1,), "int32"),
        (LOSS_SCALE, "value"): Expected((), "float32", config.train.first_loss_scale),
        (LOSS_SCALE, "good_steps"): Expected((), "int32"),
    }
    scales = row_scale_shapes(config.model.layers)
    for name, shape in dense_shapes(config).items():
        arrays[WEIGHTS, name] = Expected(shape, "float32", FIRST_ROW_SCALE if name in scales else None)
        arrays |= {(OPTIMIZER, f"{name}.{kind}"): Expected(shape, "float32") for kind in ("moment", "variance")}
    for key, shape in stored_shapes(config).items():
        _, segment, name = key.split(".")  # experts.SEGMENT.NAME
        shard = f"{EXPERTS}{segment}"
        arrays[shard, name] = Expected(shape, "float32", None)
        arrays |= {(shard, f"{name}.{kind}"): Expected(shape, moment_dtype) for kind in ("moment", "variance")}
        arrays[shard, "step"] = Expected(shape[:1], "int32")
    for e, entry in enumerate(config.model.rows):
        arrays[f"{ROWS}{e}", "keys"] = Expected((0,), "int64")
        for name in ROW_ARRAYS:
            values = Expected((0, entry.width), "float32", None if name == "weight" else 0)
            arrays[f"{ROWS}{e}", name] = Expected((0,), "int32") if name == "step" else values
    return arrays


def compose(config: Config, find: Find) -> Files:
    """Return the files of a checkpoint of `config` in one process, with the names, shapes and dtypes that training saves.

    find: function from (shard, name, shape) to the array, or to None for an array that begins as in a new run: see `Find`.
    Raises KeyError for a weight that is not found, or has another shape.
    """
    files: Files = {}
    for (shard, name), (shape, dtype, first) in saved_arrays(config).items():
        # first: initial value in a new run; None for a weight, which must be found
        keys = files.setdefault(shard, {}).get("keys")
        if keys is not None:  # another array of rows: their number is now known, because "keys" comes first
            shape = (*keys.values.shape, *shape[1:])
        array = find(shard, name, shape)
        # a shape with 0 is of rows, of which a new run has none
        if first is None and 0 not in shape and (array is None or array.shape != shape):
            raise KeyError(f"{shard}: {name} of shape {shape}")
        if array is None:
            array = LazyArray.of(np.full(shape, first, dtype)) if first else LazyArray.zeros(shape, dtype)
        files[shard][name] = SavedArray.whole(array)
    return files
