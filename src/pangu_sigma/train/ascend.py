"""A run on Ascend ranks: the same loop around another step, and checkpoints of what MindSpore has cut.

Nothing here has run on a device. What runs is tested as a run of one rank on the CPU, the step of many ranks is compiled
(planning/compile.py), and which rank writes what is arithmetic that a test covers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from mindspore import Parameter, Tensor

from pangu_sigma.config import ParallelConfig
from pangu_sigma.device import use_ascend
from pangu_sigma.ecss.store import ExpertStore, HostStore
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.parallel.ascend_step import AscendStep, step_inputs
from pangu_sigma.parallel.connect import join
from pangu_sigma.parallel.layout import Layout
from pangu_sigma.parallel.ranks import Ranks
from pangu_sigma.parallel.supported import check_ascend
from pangu_sigma.train.checkpoint import Checkpoint
from pangu_sigma.train.evaluation import Evaluator
from pangu_sigma.train.feed import Fed
from pangu_sigma.train.loop import Trainer
from pangu_sigma.train.parts import Part
from pangu_sigma.train.state import EXPERTS, WEIGHTS, Parts, Shards, fill_from
from pangu_sigma.train.step import StepResult

COLUMNS = ("w1", "b1", "w2")
"""Tensors of an expert that tensor ranks divide along the ffn axis."""


class AscendTrainer(Trainer):
    """A run whose step is `AscendStep`."""

    step: AscendStep
    exchanged = True
    prefetches = False

    @property
    def counts(self) -> bool:  # type: ignore[override]
        """Tensor ranks see the same tokens, and stages the same ones after each other: the last has the losses."""
        place = Layout(self.config.parallel).place(self.ranks.rank)
        return place.tensor == 0 and place.stage == self.config.parallel.stages - 1

    def evaluator(self) -> Evaluator:
        held_out = self.open_batches("held_out")
        return Evaluator(self.config, held_out, self.step, self.network, self.ranks, together=True, counts=self.counts)

    def _join(self) -> Ranks:
        check_ascend(self.config)
        use_ascend(self.config)
        return join(self.config.parallel, ascend=True)

    def _build(self) -> tuple[PanGuSigma, ExpertStore, AscendStep]:
        step = AscendStep(self.config, self.ranks.rank)
        step.fill(self.config.seed)
        return step.network.loss.network, step.store, step

    def _take_step(self, rate: float, fed: Fed) -> StepResult:
        loss_M, norm, applied, scale = self.step.take(rate, fed.batch)
        return StepResult((loss_M,), norm, applied, scale)

    def _files(self) -> tuple[dict[str, dict[str, np.ndarray]], Parts]:
        rank, parallel = self.ranks.rank, self.config.parallel
        arrays: dict[str, dict[str, np.ndarray]] = {}
        parts: Parts = {}
        for shard, name, parameter, part in placed(self.shards, self.store, parallel, rank):
            if writes(dense_of(self.shards, name), shard, name, parallel, rank):
                stem = f"{shard}.{rank:05d}"
                arrays.setdefault(stem, {})[name] = parameter.asnumpy()
                parts.setdefault(stem, {})[name] = part
        return arrays, parts

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.step.compile(*step_inputs(self.config))  # only then has MindSpore cut the parameters
        parts: Parts = {}
        for shard, name, _, part in placed(self.shards, self.store, self.config.parallel, self.ranks.rank):
            parts.setdefault(shard, {})[name] = part
        for parameter, array in fill_from(checkpoint, self.shards, parts):
            parameter.set_data(Tensor(array), slice_shape=True)


def placed(
    shards: Shards, store: ExpertStore, parallel: ParallelConfig, rank: int
) -> Iterator[tuple[str, str, Parameter, Part]]:
    """Every parameter of a checkpoint with the part of the whole that this rank holds."""
    assert isinstance(store, HostStore)
    for shard, parameters in shards.items():
        for name, parameter in parameters.items():
            dense = dense_of(shards, name)
            if shard.startswith(EXPERTS):
                part = expert_part(parameter.shape, store.held, store.experts, name, parallel, rank)
            elif dense is not None:
                part = dense_part(dense, parallel, rank)
            else:
                part = Part.everything(tuple(parameter.shape))
            yield shard, name, parameter, part


def dense_of(shards: Shards, name: str) -> Parameter | None:
    """The dense parameter that has this name, or whose moment or variance has; None for the step count, the loss scale, experts."""
    return shards[WEIGHTS].get(name.removesuffix(".moment").removesuffix(".variance"))


def dense_part(parameter: Parameter, parallel: ParallelConfig, rank: int) -> Part:
    """Of a parameter that `sharding.cut` has marked, or of its moments."""
    rank %= parallel.stage_ranks
    whole, held = parameter.whole_shape, list(parameter.slice_shape)
    offset = [rank % parallel.tensor * size if size < full else 0 for size, full in zip(held, whole, strict=True)]
    if parameter.shards > 1:
        cut = tuple(held) != whole
        held[0] //= parameter.shards
        offset[0] += (rank // parallel.tensor if cut else rank) * held[0]
    return Part(whole, ((offset[0], offset[0] + held[0]),), tuple(offset[1:]))


def expert_part(
    shape: tuple[int, ...], held: np.ndarray, experts: int, name: str, parallel: ParallelConfig, rank: int
) -> Part:
    """Of an array of the store: rows of the experts that the rank holds, and its columns of the FFN."""
    columns = parallel.tensor if name.split(".")[0] in COLUMNS else 1
    rest = (shape[1] * columns, *shape[2:]) if len(shape) > 1 else ()
    rows = Part.of_rows((experts, *rest), held).rows
    offset = (rank % parallel.tensor * shape[1] if columns > 1 else 0, *(0 for _ in shape[2:])) if rest else ()
    return Part((experts, *rest), rows, offset)


def writes(parameter: Parameter | None, shard: str, name: str, parallel: ParallelConfig, rank: int) -> bool:
    """Whether this rank is the first of those that hold these numbers. parameter: the dense one that they belong to, if any."""
    place, columns = Layout(parallel).place(rank), name.split(".")[0] in COLUMNS
    if shard.startswith(EXPERTS):
        return place.data == 0 and (columns or place.tensor == 0)
    if parameter is None:
        return rank == 0
    rank %= parallel.stage_ranks  # a stage has its own dense parameters
    if parameter.shards > 1:
        return True  # no two have the same
    return rank < parallel.tensor if parameter.slice_shape != parameter.whole_shape else rank == 0
