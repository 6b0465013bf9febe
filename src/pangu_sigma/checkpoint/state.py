"""State dict of a checkpoint: collect the parameters of each shard, save and restore them.

Shape suffix: U keys of rows that tokens met.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from mindspore import Parameter, nn

from pangu_sigma.checkpoint.checkpoint import Checkpoint, CheckpointError
from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.parts import (
    EXPERTS,
    LOSS_SCALE,
    OPTIMIZER,
    ROWS,
    WEIGHTS,
    Files,
    Part,
    SavedArray,
    copy_part,
)
from pangu_sigma.ecss.rows import RowStore
from pangu_sigma.ecss.store import ExpertStore
from pangu_sigma.model.arrays import ROW_ARRAYS
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.optimizer.update import LossScale
from pangu_sigma.ranks.ranks import Ranks

_ROWS_AT_ONCE = 1 << 16
"""Number of rows of `model.rows` that are in memory together while they are written."""

Shards = dict[str, dict[str, Parameter]]
"""Shard → path in the network → parameter. MindSpore's own names change whenever a parameter's cell joins another cell."""


def shards_of(
    network: PanGuSigma, store: ExpertStore, optimizer: nn.Cell | None = None, scale: LossScale | None = None
) -> Shards:
    """Return the parameters that a checkpoint holds, by shard; without `optimizer` and `scale` the weights alone."""
    dense = dict(network.parameters_and_names())
    if optimizer is not None:  # the optimizer of a pipeline stage has the parameters of its layers only
        weights = {id(p) for p in optimizer.weights}
        dense = {name: p for name, p in dense.items() if id(p) in weights}
    shards = {WEIGHTS: dense}
    for experts in store.segments:
        shards[f"{EXPERTS}{experts.segment.number}"] = experts.named
    if optimizer is not None:
        shards[OPTIMIZER] = {
            **{f"{name}.moment": p for name, p in zip(dense, optimizer.moments, strict=True)},
            **{f"{name}.variance": p for name, p in zip(dense, optimizer.variances, strict=True)},
            "step": optimizer.step,
        }
    if scale is not None:
        shards[LOSS_SCALE] = {"value": scale.value, "good_steps": scale.good_steps}
    return shards


Parts = dict[str, dict[str, Part]]
"""Shard → name of the parameter → part of the whole array that the parameter holds."""


def parts_of(store: ExpertStore) -> Parts:
    """Return the part of the whole array that each parameter of this rank holds, for shards that are divided among ranks."""
    parts: Parts = {}
    for experts in store.segments:
        segment = experts.segment
        if segment.stored < segment.experts:  # other ranks store the others
            shapes = {name: (segment.experts, *parameter.shape[1:]) for name, parameter in experts.named.items()}
            parts[f"{EXPERTS}{segment.number}"] = {n: Part.of_rows(shape, segment.held) for n, shape in shapes.items()}
    return parts


def files_of(shards: Shards, parts: Parts, ranks: Ranks) -> Files:
    """Return the files of a checkpoint that this rank writes. Rank 0 writes the shards that are not divided.

    parts: parts of the divided shards, as `parts_of` returns them.
    """
    files: Files = {}
    for shard, parameters in shards.items():
        if shard in parts or ranks.first:
            file = file_of_rank(shard, ranks.rank) if shard in parts else shard
            arrays = {name: SavedArray(_part(parts, shard, name, p), p.asnumpy()) for name, p in parameters.items()}
            files[file] = arrays
    return files


def file_of_rank(shard: str, rank: int) -> str:
    """Return the name of the file to which a rank writes its parts of a shard."""
    return f"{shard}.{rank:05d}"


def restore(
    shards: Shards,
    checkpoint: Checkpoint,
    after_row: Callable[[], None] = lambda: None,
    parts: Parts | None = None,
    put: Callable[[Parameter, np.ndarray], None] | None = None,
) -> None:
    """Copy the values of a checkpoint into every parameter.

    after_row: called as in `copy_part`. parts: parts of the divided parameters, as `parts_of` returns them; None if no parameter is
    divided. put: copies values to the device; None if parameters are in the memory of the host, where they are written in place.
    Raises CheckpointError for a parameter that is missing, or of another shape or dtype.
    """
    for shard, parameters in shards.items():
        for name, parameter in parameters.items():
            values, part = parameter.asnumpy(), _part(parts or {}, shard, name, parameter)
            arrays = checkpoint.parts.get((shard, name), [])
            saved_types = {(array.values.dtype, array.part.whole) for array in arrays}
            if saved_types != {(values.dtype, part.whole)}:
                saved_text = ", ".join(f"{dtype} of shape {shape}" for dtype, shape in saved_types) or "missing"
                raise CheckpointError(
                    f"checkpoint of step {checkpoint.step}: {name} is {saved_text} in shard {shard}, the model needs "
                    f"{values.dtype} of shape {part.whole}; the checkpoint is of another configuration"
                )
            target = values if put is None else np.empty_like(values)
            for array in arrays:
                copy_part(array, target, part, after_row)
            if put is not None:
                put(parameter, target)


def row_files(store: RowStore | None, ranks: Ranks) -> Files:
    """Return the files, one per entry of `model.rows`, of the rows that tokens met, ascending by key, with their Adam state. All
    ranks have the same rows, and rank 0 writes them. store: None for a model without `model.rows`."""
    files: Files = {}
    if store is None or not ranks.first:
        return files
    for e in range(len(store.entries)):
        keys_U = store.met(e)
        arrays = {name: SavedArray.whole(_lazy_rows(store, e, name, keys_U)) for name in ROW_ARRAYS}
        files[f"{ROWS}{e}"] = {"keys": SavedArray.whole(keys_U), **arrays}
    return files


def _lazy_rows(store: RowStore, entry: int, name: str, keys_U: np.ndarray) -> LazyArray:
    """Return the array `name` (one of ROW_ARRAYS) of the rows with these keys; the store is read in pieces while it is written."""
    empty = store.read(entry, name, keys_U[:0])  # for the shape of a row, and the dtype
    pieces = [keys_U[first : first + _ROWS_AT_ONCE] for first in range(0, len(keys_U), _ROWS_AT_ONCE)]
    shape = (len(keys_U), *empty.shape[1:])
    return LazyArray(shape, empty.dtype, lambda: (store.read(entry, name, piece) for piece in pieces), name)


def restore_rows(store: RowStore | None, checkpoint: Checkpoint) -> None:
    """Replace the rows in a store by the rows of `model.rows` of a checkpoint. store: None for a model without `model.rows`. Raises
    CheckpointError if they do not fit."""
    if store is None:
        return
    for e, entry in enumerate(store.entries):
        parts_by_name = {name: checkpoint.parts.get((f"{ROWS}{e}", name)) for name in ("keys", *ROW_ARRAYS)}
        arrays = {name: parts[0].values for name, parts in parts_by_name.items() if parts}  # rows are not divided
        try:
            store.put(e, **arrays)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint of step {checkpoint.step}: the rows of entry {e} are not {entry.rows} of width {entry.width} "
                f"({error}); the checkpoint is of another configuration"
            ) from error


def _part(parts: Parts, shard: str, name: str, parameter: Parameter) -> Part:
    return parts.get(shard, {}).get(name) or Part.everything(tuple(parameter.shape))
