"""A run on Ascend ranks: the same loop around another step, and checkpoints of what MindSpore has cut.

Nothing here has run on a device. What runs is tested as a run of one rank on the CPU, the step of many ranks is compiled
(planning/compile.py), and which rank writes what is arithmetic that a test covers.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor

from pangu_sigma.ascend.device import use_ascend
from pangu_sigma.ascend.inputs import step_inputs
from pangu_sigma.ascend.parts import dense_of, placed, writes
from pangu_sigma.ascend.step import AscendStep
from pangu_sigma.ascend.supported import check_ascend
from pangu_sigma.checkpoint.checkpoint import Checkpoint
from pangu_sigma.checkpoint.state import Parts, fill_from
from pangu_sigma.ecss.store import ExpertStore
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.parallel.connect import join
from pangu_sigma.parallel.layout import Layout
from pangu_sigma.parallel.ranks import Ranks
from pangu_sigma.train.feed import Fed
from pangu_sigma.train.held_out import Evaluator
from pangu_sigma.train.loop import Trainer
from pangu_sigma.train.step import StepResult


class AscendTrainer(Trainer):
    """A run whose step is `AscendStep`."""

    step: AscendStep
    ascend = True
    prefetches = False

    @property
    def counts(self) -> bool:  # type: ignore[override]
        """Tensor ranks see the same tokens, and stages the same ones after each other: the last has the losses."""
        place = Layout(self.config.parallel).coordinates(self.ranks.rank)
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
