"""The project's training step, with its batches, and checkpoints as a dataset, a one-step cell and a callback of MindFormers."""

from __future__ import annotations

import logging
from typing import Any

import mindspore as ms
import numpy as np
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindspore import Tensor, nn
from mindspore.dataset import GeneratorDataset
from mindspore.train import Callback

from pangu_sigma.checkpoint.saver import Saver
from pangu_sigma.checkpoint.state import files_of, shards_of
from pangu_sigma.config import Config
from pangu_sigma.data.batches import BatchLoader, Lookahead, StepArrays
from pangu_sigma.mindformers_adapter.model import PanGuSigmaForCausalLM
from pangu_sigma.model.declare import as_input
from pangu_sigma.ranks.ranks import SINGLE_PROCESS
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.training.start import Progress
from pangu_sigma.training.step import TrainStep

logger = logging.getLogger(__name__)


@MindFormerRegister.register(MindFormerModuleType.DATASET, alias="PanGuSigmaDataset")
def make_dataset(dataset_config: Any, steps: int) -> GeneratorDataset:
    """Make a MindSpore dataset with a row for each of the next `steps` training steps, which is only the step's number from 0: the
    batches come from the one-step cell. dataset_config: the YAML's `train_dataset`, which `sigma_config` has read."""
    numbers = [(np.array(number),) for number in range(steps)]
    return GeneratorDataset(numbers, ["step"], shuffle=False, python_multiprocessing=False)


@MindFormerRegister.register(MindFormerModuleType.OPTIMIZER)
class PanGuSigmaAdam:
    """MindFormers optimizer, the section `optimizer` of a YAML. It only provides the learning rate.

    `TrainStep` holds the moments and makes the update, since no gradient has the shape of all experts. The learning rate is
    MindFormers' own schedule, evaluated on the host (optimizer/update.py says why)."""

    def __init__(self, params: list[ms.Parameter], learning_rate: nn.Cell, **settings: Any):
        self.learning_rate = learning_rate

    def rate(self, update: int) -> float:
        """Return the learning rate of update number `update`, counted from 1."""
        return float(self.learning_rate(Tensor(update, ms.float32)))


@MindFormerRegister.register(MindFormerModuleType.WRAPPER)
class PanGuSigmaTrainOneStepCell(nn.Cell):
    """Cell with which MindFormers makes one training step. It works on the host before it runs the graph of the step, and so must
    not be compiled into another cell."""

    def __init__(
        self,
        network: PanGuSigmaForCausalLM,
        optimizer: PanGuSigmaAdam,
        config: Config,
        batches: BatchLoader,
        folder: StoredRun,
        progress: Progress,
    ):
        """progress: progress of the run, which advances with every step."""
        super().__init__(auto_prefix=False)
        self.network, self.optimizer, self.folder, self.progress = network, optimizer, folder, progress
        self.lookahead = Lookahead(batches, progress.cursor)
        self.step = TrainStep(config, network.network, network.store)
        self.shards = shards_of(network.network, network.store, self.step.dense, self.step.scale)

    def __call__(self, *row: Tensor) -> tuple[Tensor, ...]:
        """Train on the next batch. Return loss, overflow (True or False), loss scale, learning rate and gradient norm, in the order
        of MFLossMonitor. row: of the dataset; it has no data, and is not read."""
        batch, cursor, _ = self.lookahead.take()
        rate = self.optimizer.rate(self.progress.updates + 1)
        result = self.step.take(rate, StepArrays(*map(as_input, batch.arrays())))
        applied = bool(result.applied.asnumpy())
        self.progress.advance(applied, cursor)
        loss = np.stack([loss_M.asnumpy() for loss_M in result.block_loss_GM]).sum()
        return Tensor(loss), Tensor(not applied), result.scale, Tensor(rate, ms.float32), result.norm


@MindFormerRegister.register(MindFormerModuleType.CALLBACK)
class PanGuSigmaCheckpoint(Callback):
    """MindFormers callback that saves a checkpoint in the project's format every `save_checkpoint_steps` steps and at the end, and
    keeps the newest `keep_checkpoint_max` of them.

    The file of MindFormers' CheckpointMonitor has neither the position in the data nor the identity of vocabulary and routing
    tables, and no hash detects damage."""

    def __init__(self, save_checkpoint_steps: int = 500, keep_checkpoint_max: int = 2):
        super().__init__()
        self.interval, self.keep, self.saved = save_checkpoint_steps, keep_checkpoint_max, 0

    def on_train_step_end(self, run_context: Any) -> None:
        self.save(run_context.original_args().train_network, self.interval)

    def on_train_end(self, run_context: Any) -> None:
        self.save(run_context.original_args().train_network)

    def save(self, cell: PanGuSigmaTrainOneStepCell, interval: int = 1) -> None:
        """Write a checkpoint of the state after the last step, if the step's number is a multiple of `interval` and it is not saved
        yet. Raises CheckpointError if the disk fails."""
        step = cell.progress.step
        if step % interval or step == self.saved:
            return
        cell.network.store.settle()
        files, state = files_of(cell.shards, {}, SINGLE_PROCESS), cell.progress.state()
        with Saver(cell.folder.checkpoints, cell.folder.identity, self.keep) as saver:
            logger.info("saved %s", saver.save(step, files, state))
        self.saved = step
