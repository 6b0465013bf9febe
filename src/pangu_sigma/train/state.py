"""What a checkpoint holds of a run, and how it comes back: parameters by shard, everything else as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter

from pangu_sigma.data.batches import Cursor
from pangu_sigma.ecss.store import ExpertStore, make_store
from pangu_sigma.ecss.tiers import UnsetTier
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.train.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from pangu_sigma.train.run_folder import RunFolder
from pangu_sigma.train.shards import copy_mapped
from pangu_sigma.train.step import TrainStep

WEIGHTS = "dense"
"""Shard of the dense parameters; `experts_layer_<n>` are those of the experts, with their Adam state."""


@dataclass
class Progress:
    """Where a run stands. step: steps done. updates: those of them that were applied; the learning rate follows it."""

    step: int
    updates: int
    cursor: Cursor

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        return cls(state["step"], state["updates"], Cursor.from_state(state["cursor"]))


Shards = dict[str, dict[str, Parameter]]
"""Parameters by shard and by their place in the structure: MindSpore renames a parameter whenever its cell joins another one."""


def shards_of(network: PanGuSigma, store: ExpertStore, step: TrainStep | None = None) -> Shards:
    """What a checkpoint holds; the dense optimizer's and the loss scale's parts with `step` only."""
    dense = dict(network.parameters_and_names())
    shards = {WEIGHTS: dense}
    for layer in range(store.layers):
        shards[f"experts_layer_{layer}"] = store.layer_parameters(layer)
    if step is not None:
        shards["dense_optimizer"] = {
            **{f"{name}.moment": p for name, p in zip(dense, step.dense.moments, strict=True)},
            **{f"{name}.variance": p for name, p in zip(dense, step.dense.variances, strict=True)},
            "step": step.dense.step,
        }
        shards["loss_scale"] = {"value": step.scale.value, "good_steps": step.scale.good_steps}
    return shards


def arrays_of(shards: Shards) -> dict[str, dict[str, np.ndarray]]:
    """The values to save."""
    return {shard: {name: p.asnumpy() for name, p in parameters.items()} for shard, parameters in shards.items()}


def restore(shards: Shards, checkpoint: Checkpoint, after_row: Callable[[], None] = lambda: None) -> None:
    """Copy the checkpoint into the memory of every parameter; after_row: called after each row of an array.

    Raises CheckpointError for a parameter that is missing, or of another shape or dtype.
    """
    for parameter, value in _matched(shards, checkpoint):
        copy_mapped(value, parameter.asnumpy(), after_row)


def load_trained(run: RunFolder) -> tuple[PanGuSigma, ExpertStore]:
    """Network and experts of a run's newest intact checkpoint; the experts stay in its files and are read as they are used."""
    network = PanGuSigma(run.config.model, run.config.slots)
    store = make_store(run.config, UnsetTier())
    shards, checkpoint = shards_of(network, store), load_checkpoint(run.checkpoints, run.identity)
    restore({WEIGHTS: shards.pop(WEIGHTS)}, checkpoint)
    for parameter, value in _matched(shards, checkpoint):
        parameter.set_data(ms.Tensor.from_numpy(value), slice_shape=True)
    return network, store


def _matched(shards: Shards, checkpoint: Checkpoint) -> Iterator[tuple[Parameter, np.ndarray]]:
    """Every parameter with its saved value."""
    for shard, parameters in shards.items():
        saved = checkpoint.shards.get(shard, {})
        for name, parameter in parameters.items():
            value, target = saved.get(name), parameter.asnumpy()
            if value is None or value.shape != target.shape or value.dtype != target.dtype:
                found = "is missing" if value is None else f"is {value.dtype} of shape {value.shape}"
                raise CheckpointError(
                    f"checkpoint of step {checkpoint.step}: {name} {found} in shard {shard}, the model needs "
                    f"{target.dtype} of shape {target.shape}; the checkpoint is of another configuration"
                )
            yield parameter, value
