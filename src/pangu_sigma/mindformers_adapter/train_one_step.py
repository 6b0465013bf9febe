"""Training step of the project as MindFormers' one-step cell, with the same graph and loss scale.

Shape suffixes: A active experts of a segment, D domains.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindspore import Tensor, nn

from pangu_sigma.checkpoint.state import shards_of
from pangu_sigma.config import Config
from pangu_sigma.data.step_arrays import StepArrays
from pangu_sigma.mindformers_adapter.dataset import arrays_of
from pangu_sigma.mindformers_adapter.model import PanGuSigmaForCausalLM
from pangu_sigma.model.declare import as_input
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.training.start import Progress
from pangu_sigma.training.step import TrainStep


@MindFormerRegister.register(MindFormerModuleType.OPTIMIZER)
class PanGuSigmaAdam:
    """MindFormers optimizer, the section `optimizer` of a YAML. It only provides the learning rate.

    `TrainStep` holds the moments and makes the update, since no gradient has the shape of all experts. The learning rate is
    MindFormers' own schedule, evaluated on the host (optimizer/update.py says why).
    """

    def __init__(self, params: list[ms.Parameter], learning_rate: nn.Cell, **settings: Any):
        self.learning_rate = learning_rate

    def rate(self, update: int) -> float:
        """Return the learning rate of update number `update`, counted from 1."""
        return float(self.learning_rate(Tensor(update, ms.float32)))


@MindFormerRegister.register(MindFormerModuleType.WRAPPER)
class PanGuSigmaTrainOneStepCell(nn.Cell):
    """Cell with which MindFormers makes one training step: called with a row of the dataset, it returns loss, overflow (True or
    False), loss scale, learning rate and gradient norm, as MFLossMonitor takes them.

    It works on the host before it runs the graph of the step, and so must not be compiled into another cell.
    """

    def __init__(
        self,
        network: PanGuSigmaForCausalLM,
        optimizer: PanGuSigmaAdam,
        config: Config,
        folder: StoredRun,
        progress: Progress,
    ):
        """progress: progress of the run, which advances with every step."""
        super().__init__(auto_prefix=False)
        self.network, self.optimizer, self.folder, self.progress = network, optimizer, folder, progress
        self.step = TrainStep(config, network.network, network.store)
        self.shards = shards_of(network.network, network.store, self.step.dense, self.step.scale)

    def __call__(self, *columns: Tensor) -> tuple[Tensor, ...]:
        arrays, coming_A, taken_D = arrays_of(columns)
        self.network.store.tier.read_ahead(*([a.asnumpy() for a in lists] for lists in (arrays.active_A, coming_A)))
        rate = self.optimizer.rate(self.progress.updates + 1)
        result = self.step.take(rate, StepArrays(*map(as_input, arrays)))
        applied = bool(result.applied.asnumpy())
        self.progress.advance(applied, replace(self.progress.cursor, taken=taken_D.asnumpy().tolist()))
        loss = np.stack([loss_M.asnumpy() for loss_M in result.block_loss_GM]).sum()
        return Tensor(loss), Tensor(not applied), result.scale, Tensor(rate, ms.float32), result.norm
