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

_ARRAY_FIELDS = StepArrays._fields.index("order_GT")
"""Number of the first fields of `StepArrays`, which are single arrays. The other fields are tuples over the N segments; `e_GTH`,
the rows of `model.rows`, is not used here. A row of a dataset is flat, so each segment has a column of its own there."""
_SEGMENT_FIELDS = (*(name for name in StepArrays._fields[_ARRAY_FIELDS:] if name != "e_GTH"), "coming")


@MindFormerRegister.register(MindFormerModuleType.DATASET, alias="PanGuSigmaDataset")
def make_dataset(dataset_config: Any, batches: BatchLoader, cursor: Cursor, steps: int) -> GeneratorDataset:
    """Make a MindSpore dataset with a row for each of the next `steps` training steps: the arrays of a whole batch.

    dataset_config: the YAML's `train_dataset`, which `sigma_config` has read. cursor: position in the data at which they begin.
    """
    names = [f"{name}.{n}" for name in _SEGMENT_FIELDS for n in range(len(batches.config.model.routed))]
    columns = [*StepArrays._fields[:_ARRAY_FIELDS], *names, "taken"]
    return GeneratorDataset(_StepRows(batches, cursor, steps), columns, shuffle=False, python_multiprocessing=False)


class _StepRows:
    """Iterable of the rows of `make_dataset`, which `_arrays_of` parses. It can be iterated over once."""

    def __init__(self, batches: BatchLoader, cursor: Cursor, steps: int):
        self._lookahead, self._steps = Lookahead(batches, cursor), steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        for _ in range(self._steps):
            batch, cursor, next_batch = self._lookahead.take()
            arrays = batch.arrays()
            segment_arrays = (array for field in (*arrays[_ARRAY_FIELDS:], next_batch.active_A) for array in field)
            yield (*arrays[:_ARRAY_FIELDS], *segment_arrays, np.array(cursor.taken))


def _arrays_of(columns: Sequence[Any]) -> tuple[StepArrays, tuple[Any, ...], Any]:
    """Parse a row of the dataset. Return (arrays of a step; active experts of the next batch by segment, to read them ahead; number
    of samples taken of each domain after the step [D])."""
    *columns, taken_D = columns
    segments = (len(columns) - _ARRAY_FIELDS) // len(_SEGMENT_FIELDS)
    fields = dict(zip(StepArrays._fields, columns[:_ARRAY_FIELDS], strict=False))
    for i, name in enumerate(_SEGMENT_FIELDS):
        fields[name] = tuple(columns[_ARRAY_FIELDS + i * segments :][:segments])
    next_active_A = fields.pop("coming")
    return StepArrays(**fields, e_GTH=()), next_active_A, taken_D


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
        arrays, next_A, taken_D = _arrays_of(columns)
        self.network.store.tier.read_ahead(*([a.asnumpy() for a in rows_A] for rows_A in (arrays.active_A, next_A)))
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
