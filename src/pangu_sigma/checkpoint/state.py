"""What a checkpoint holds of a run, and how it comes back: parameters by shard, everything else as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mindspore as ms
import numpy as np
from mindspore import Parameter

from pangu_sigma.checkpoint.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from pangu_sigma.checkpoint.parts import Part, copy_part
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.ecss.store import ExpertStore, make_store
from pangu_sigma.ecss.tiers import UnsetTier
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.optimizer.dense_adam import AdamState
from pangu_sigma.optimizer.loss_scale import LossScale
from pangu_sigma.parallel.ranks import Ranks

WEIGHTS = "dense"
"""Shard of the dense parameters."""
EXPERTS = "experts_layer_"
"""Begins the names of the shards of the experts, one a layer, with their Adam state."""


Shards = dict[str, dict[str, Parameter]]
"""Parameters by shard and by their place in the structure: MindSpore renames a parameter whenever its cell joins another one."""


def shards_of(
    network: PanGuSigma, store: ExpertStore, optimizer: AdamState | None = None, scale: LossScale | None = None
) -> Shards:
    """What a checkpoint holds; without `optimizer` and `scale` the weights alone."""
    dense = dict(network.parameters_and_names())
    if optimizer is not None:  # the optimizer of a pipeline stage has the parameters of its layers only
        own = {id(p) for p in optimizer.weights}
        dense = {name: p for name, p in dense.items() if id(p) in own}
    shards = {WEIGHTS: dense}
    for layer in store.numbers:
        shards[f"{EXPERTS}{layer}"] = store.layer_parameters(layer)
    if optimizer is not None:
        shards["dense_optimizer"] = {
            **{f"{name}.moment": p for name, p in zip(dense, optimizer.moments, strict=True)},
            **{f"{name}.variance": p for name, p in zip(dense, optimizer.variances, strict=True)},
            "step": optimizer.step,
        }
    if scale is not None:
        shards["loss_scale"] = {"value": scale.value, "good_steps": scale.good_steps}
    return shards


Parts = dict[str, dict[str, Part]]
"""Where the parameters of shards lie in those of the run."""


def parts_of(shards: Shards, store: ExpertStore) -> Parts:
    """Where the parameters of this rank lie in those of the run, of the shards that are divided among ranks."""
    if len(store.held) == store.experts:
        return {}
    return {
        shard: {name: Part.of_rows((store.experts, *p.shape[1:]), store.held) for name, p in parameters.items()}
        for shard, parameters in shards.items()
        if shard.startswith(EXPERTS)
    }


def arrays_of(shards: Shards) -> dict[str, dict[str, np.ndarray]]:
    """The values to save."""
    return {shard: {name: p.asnumpy() for name, p in parameters.items()} for shard, parameters in shards.items()}


def files_of(
    shards: Shards, parts: Parts, ranks: Ranks, writes_experts: bool
) -> tuple[dict[str, dict[str, np.ndarray]], Parts]:
    """What this rank writes of a checkpoint: arrays and parts by file stem.

    Rank 0 writes what is not divided. writes_experts: whether this rank is the one of the replicas that writes what all of them
    store.
    """
    own = {
        f"{shard}.{ranks.rank:05d}" if shard in parts else shard: shard
        for shard in shards
        if (writes_experts if shard in parts else ranks.first)
    }
    arrays = arrays_of({shard: shards[shard] for shard in own.values()})
    return (
        {stem: arrays[shard] for stem, shard in own.items()},
        {stem: parts[shard] for stem, shard in own.items() if shard in parts},
    )


def restore(
    shards: Shards,
    checkpoint: Checkpoint,
    after_row: Callable[[], None] = lambda: None,
    parts: dict[str, dict[str, Part]] | None = None,
) -> None:
    """Copy the checkpoint into the memory of every parameter; after_row: called after each row of an array.

    parts: where parameters lie that are not whole, as `parts_of`.
    Raises CheckpointError for a parameter that is missing, or of another shape or dtype.
    """
    for shard, name, parameter, pieces in _matched(shards, checkpoint, parts or {}):
        wanted = _part(parts or {}, shard, name, parameter)
        _fill(parameter.asnumpy(), wanted, pieces, f"checkpoint of step {checkpoint.step}: {name}", after_row)


def fill_from(checkpoint: Checkpoint, shards: Shards, parts: Parts) -> Iterator[tuple[Parameter, np.ndarray]]:
    """Every parameter with its part of the checkpoint, where a parameter's memory is not the host's. Raises as `restore`."""
    for shard, name, parameter, pieces in _matched(shards, checkpoint, parts):
        array = np.empty_like(parameter.asnumpy())
        _fill(array, parts[shard][name], pieces, f"checkpoint of step {checkpoint.step}: {name}")
        yield parameter, array


def _fill(
    target: np.ndarray,
    wanted: Part,
    pieces: list[tuple[Part, np.ndarray]],
    what: str,
    after_row: Callable[[], None] = lambda: None,
) -> None:
    copied = sum(copy_part(value, part, target, wanted, after_row) for part, value in pieces)
    if copied != target.size:
        raise CheckpointError(f"{what} has {copied} of {target.size} values; a file is missing, use another checkpoint")


def load_trained(run: RunFolder) -> tuple[PanGuSigma, ExpertStore]:
    """Network and experts of a run's newest intact checkpoint, in one process, however many ranks wrote it.

    Experts that one rank wrote stay in its files and are read as they are used.
    """
    network = PanGuSigma(run.config.model, run.config.slots)
    store = make_store(run.config.on_one_rank(), UnsetTier())
    shards, checkpoint = shards_of(network, store), load_checkpoint(run.checkpoints, run.identity)
    for shard, name, parameter, pieces in list(_matched(shards, checkpoint, {})):
        (part, value), *others = pieces
        if shard != WEIGHTS and not others and value.shape == part.whole:
            parameter.set_data(ms.Tensor.from_numpy(value), slice_shape=True)
            del shards[shard][name]
    restore(shards, checkpoint)
    return network, store


Matched = tuple[str, str, Parameter, list[tuple[Part, np.ndarray]]]
"""Shard and name of a parameter, and what the checkpoint has of it."""


def _matched(shards: Shards, checkpoint: Checkpoint, parts: dict[str, dict[str, Part]]) -> Iterator[Matched]:
    for shard, parameters in shards.items():
        saved = checkpoint.pieces(shard)
        for name, parameter in parameters.items():
            target, pieces = parameter.asnumpy(), saved.get(name, [])
            whole = _part(parts, shard, name, parameter).whole
            wrong = [
                (part.whole, value.dtype)
                for part, value in pieces
                if (part.whole, value.dtype) != (whole, target.dtype)
            ]
            if wrong or not pieces:
                found = f"is {wrong[0][1]} of shape {wrong[0][0]}" if wrong else "is missing"
                raise CheckpointError(
                    f"checkpoint of step {checkpoint.step}: {name} {found} in shard {shard}, the model needs "
                    f"{target.dtype} of shape {whole}; the checkpoint is of another configuration"
                )
            yield shard, name, parameter, pieces


def _part(parts: dict[str, dict[str, Part]], shard: str, name: str, parameter: Parameter) -> Part:
    return parts.get(shard, {}).get(name) or Part.everything(tuple(parameter.shape))
