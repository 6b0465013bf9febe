"""The project's batches, training step and checkpoints as a dataset, a one-step cell and a callback of MindFormers.

Shape suffixes: N segments of the RRE layers, A active experts of a segment, D domains.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindspore import Tensor, nn
from mindspore.dataset import GeneratorDataset
from mindspore.train import Callback

from pangu_sigma.checkpoint.saver import save_checkpoint
from pangu_sigma.checkpoint.state import files_of, shards_of
from pangu_sigma.config import Config
from pangu_sigma.data.batches import BatchLoader, Lookahead
from pangu_sigma.data.order import Cursor
from pangu_sigma.data.step_arrays import StepArrays
from pangu_sigma.mindformers_adapter.model import PanGuSigmaForCausalLM
from pangu_sigma.model.declare import as_input
from pangu_sigma.ranks.ranks import SINGLE_PROCESS
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.training.start import Progress
from pangu_sigma.training.step import TrainStep

logger = logging.getLogger(__name__)

_WHOLE = StepArrays._fields.index("order_GT")
"""Number of the fields of `StepArrays` that are arrays. The others, and `coming`, are tuples over the N segments, but for the rows
of `model.rows`, which are refused. A row of a dataset is flat, so each segment has a column of its own there."""
_BY_SEGMENT = (*(name for name in StepArrays._fields[_WHOLE:] if name != "e_GTH"), "coming")


@MindFormerRegister.register(MindFormerModuleType.DATASET, alias="PanGuSigmaDataset")
def make_dataset(dataset_config: Any, batches: BatchLoader, cursor: Cursor, steps: int) -> GeneratorDataset:
    """Make a MindSpore dataset with a row for each of the next `steps` training steps: a row is a whole batch.

    dataset_config: the YAML's `train_dataset`, which `sigma_config` has read. cursor: position in the data at which they begin.
    """
    names = [f"{name}.{n}" for name in _BY_SEGMENT for n in range(len(batches.config.model.routed))]
    columns = [*StepArrays._fields[:_WHOLE], *names, "taken"]
    return GeneratorDataset(_StepRows(batches, cursor, steps), columns, shuffle=False, python_multiprocessing=False)


class _StepRows:
    """Iterable of the rows of `make_dataset`, which `_arrays_of` reads. It can be iterated over once."""

    def __init__(self, batches: BatchLoader, cursor: Cursor, steps: int):
        self._lookahead, self._steps = Lookahead(batches, cursor), steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        for _ in range(self._steps):
            batch, cursor, coming = self._lookahead.take()
            arrays = batch.arrays()
            by_segment = (array for field in (*arrays[_WHOLE:], coming.active_A) for array in field)
            yield (*arrays[:_WHOLE], *by_segment, np.array(cursor.taken))


def _arrays_of(columns: Sequence[Any]) -> tuple[StepArrays, tuple[Any, ...], Any]:
    """Return what a row of the dataset has: the arrays of a step; the active experts of the next batch, to read them ahead;
    and the number of samples taken of each domain after the step [D]."""
    *columns, taken = columns
    count = (len(columns) - _WHOLE) // len(_BY_SEGMENT)
    firsts = (_WHOLE + i * count for i in range(len(_BY_SEGMENT)))
    by_segment = {name: tuple(columns[first : first + count]) for name, first in zip(_BY_SEGMENT, firsts, strict=True)}
    coming = by_segment.pop("coming")
    whole = dict(zip(StepArrays._fields, columns[:_WHOLE], strict=False))
    return StepArrays(**whole, **by_segment, e_GTH=()), coming, taken


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
        arrays, coming_A, taken_D = _arrays_of(columns)
        self.network.store.tier.read_ahead(*([a.asnumpy() for a in lists] for lists in (arrays.active_A, coming_A)))
        rate = self.optimizer.rate(self.progress.updates + 1)
        result = self.step.take(rate, StepArrays(*map(as_input, arrays)))
        applied = bool(result.applied.asnumpy())
        self.progress.advance(applied, replace(self.progress.cursor, taken=taken_D.asnumpy().tolist()))
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
        path = save_checkpoint(cell.folder.checkpoints, step, files, state, cell.folder.identity, self.keep)
        self.saved = step
        logger.info("saved %s", path)
