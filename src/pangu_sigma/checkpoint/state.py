"""The parameters that a checkpoint holds, by shard, and how they come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from mindspore import Parameter

from pangu_sigma.checkpoint.checkpoint import Checkpoint
from pangu_sigma.checkpoint.format import CheckpointError
from pangu_sigma.checkpoint.parts import EXPERTS, LOSS_SCALE, OPTIMIZER, WEIGHTS, Files, Part, SavedArray, copy_part
from pangu_sigma.ecss.store import ExpertStore
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.optimizer.dense_adam import AdamState
from pangu_sigma.optimizer.loss_scale import LossScale
from pangu_sigma.parallel.ranks import Ranks

Shards = dict[str, dict[str, Parameter]]
"""Parameters by shard and by their path in the structure: MindSpore renames a parameter whenever its cell joins another one."""


def shards_of(
    network: PanGuSigma, store: ExpertStore, optimizer: AdamState | None = None, scale: LossScale | None = None
) -> Shards:
    """The parameters that a checkpoint holds; without `optimizer` and `scale` the weights alone."""
    dense = dict(network.parameters_and_names())
    if optimizer is not None:  # the optimizer of a pipeline stage has the parameters of its layers only
        own = {id(p) for p in optimizer.weights}
        dense = {name: p for name, p in dense.items() if id(p) in own}
    shards = {WEIGHTS: dense}
    for layer in store.numbers:
        shards[f"{EXPERTS}{layer}"] = store.layer_parameters(layer)
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
"""The part of the whole array that each parameter of a shard is."""


def parts_of(shards: Shards, store: ExpertStore) -> Parts:
    """The parts that the parameters of this rank are, in the shards that are divided among ranks; other shards are left out."""
    if len(store.held) == store.experts:
        return {}
    return {
        shard: {name: Part.of_rows((store.experts, *p.shape[1:]), store.held) for name, p in parameters.items()}
        for shard, parameters in shards.items()
        if shard.startswith(EXPERTS)
    }


def files_of(shards: Shards, parts: Parts, ranks: Ranks, writes_experts: bool) -> Files:
    """The files that this rank writes of a checkpoint. Rank 0 writes the shards that are not divided.

    parts: of the shards that are divided, as `parts_of`.
    writes_experts: True if this rank is the one of the replicas that writes what all of them store.
    """
    files: Files = {}
    for shard, parameters in shards.items():
        if writes_experts if shard in parts else ranks.first:
            file = file_of_rank(shard, ranks.rank) if shard in parts else shard
            files[file] = {
                name: SavedArray(_part(parts, shard, name, p), p.asnumpy()) for name, p in parameters.items()
            }
    return files


def file_of_rank(shard: str, rank: int) -> str:
    """Name of the file in which a rank writes its parts of a shard."""
    return f"{shard}.{rank:05d}"


def restore(
    shards: Shards,
    checkpoint: Checkpoint,
    after_row: Callable[[], None] = lambda: None,
    parts: Parts | None = None,
) -> None:
    """Copy the checkpoint into the memory of every parameter.

    after_row: called after each row of an array.
    parts: of the parameters that are not whole, as `parts_of`.
    Raises CheckpointError for a parameter that is missing, or of another shape or dtype.
    """
    for shard, name, parameter, saved in _matched(shards, checkpoint, parts or {}):
        wanted = _part(parts or {}, shard, name, parameter)
        _fill(parameter.asnumpy(), wanted, saved, f"checkpoint of step {checkpoint.step}: {name}", after_row)


def fill_from(checkpoint: Checkpoint, shards: Shards, parts: Parts) -> Iterator[tuple[Parameter, np.ndarray]]:
    """Every parameter with its values in the checkpoint, for parameters whose memory is not the host's. Raises as `restore`."""
    for shard, name, parameter, saved in _matched(shards, checkpoint, parts):
        array = np.empty_like(parameter.asnumpy())
        _fill(array, parts[shard][name], saved, f"checkpoint of step {checkpoint.step}: {name}")
        yield parameter, array


def _fill(
    target: np.ndarray,
    wanted: Part,
    saved: list[SavedArray],
    what: str,
    after_row: Callable[[], None] = lambda: None,
) -> None:
    copied = sum(copy_part(array, target, wanted, after_row) for array in saved)
    if copied != target.size:
        raise CheckpointError(f"{what} has {copied} of {target.size} values; a file is missing, use another checkpoint")


Matched = tuple[str, str, Parameter, list[SavedArray]]
"""Shard and name of a parameter, and what the checkpoint has of it."""


def _matched(shards: Shards, checkpoint: Checkpoint, parts: Parts) -> Iterator[Matched]:
    for shard, parameters in shards.items():
        arrays = checkpoint.saved(shard)
        for name, parameter in parameters.items():
            target, saved = parameter.asnumpy(), arrays.get(name, [])
            whole = _part(parts, shard, name, parameter).whole
            wrong = [
                (part.whole, values.dtype)
                for part, values in saved
                if (part.whole, values.dtype) != (whole, target.dtype)
            ]
            if wrong or not saved:
                found = f"is {wrong[0][1]} of shape {wrong[0][0]}" if wrong else "is missing"
                raise CheckpointError(
                    f"checkpoint of step {checkpoint.step}: {name} {found} in shard {shard}, the model needs "
                    f"{target.dtype} of shape {whole}; the checkpoint is of another configuration"
                )
            yield shard, name, parameter, saved


def _part(parts: Parts, shard: str, name: str, parameter: Parameter) -> Part:
    return parts.get(shard, {}).get(name) or Part.everything(tuple(parameter.shape))
