"""Callback that writes checkpoints in the project's format while MindFormers trains.

The file of MindFormers' CheckpointMonitor has neither the position in the data nor the identity of vocabulary and routing tables,
and no hash detects damage.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindspore.train import Callback

from pangu_sigma.checkpoint.saver import save_checkpoint
from pangu_sigma.checkpoint.state import files_of
from pangu_sigma.mindformers_adapter.train_one_step import PanGuSigmaTrainOneStepCell
from pangu_sigma.ranks.ranks import SINGLE_PROCESS

logger = logging.getLogger(__name__)


@MindFormerRegister.register(MindFormerModuleType.CALLBACK)
class PanGuSigmaCheckpoint(Callback):
    """MindFormers callback that saves a checkpoint every `save_checkpoint_steps` steps and at the end, and keeps the newest
    `keep_checkpoint_max` of them."""

    def __init__(self, save_checkpoint_steps: int = 500, keep_checkpoint_max: int = 2):
        super().__init__()
        self.interval = save_checkpoint_steps
        self.keep = keep_checkpoint_max
        self.saved = 0

    def on_train_step_end(self, run_context: Any) -> None:
        cell = run_context.original_args().train_network
        if cell.progress.step % self.interval == 0:
            self.save(cell)

    def on_train_end(self, run_context: Any) -> None:
        cell = run_context.original_args().train_network
        if cell.progress.step != self.saved:
            self.save(cell)

    def save(self, cell: PanGuSigmaTrainOneStepCell) -> Path:
        """Write a checkpoint of the state after the last step. Raises CheckpointError if the disk fails."""
        cell.network.store.settle()
        self.saved = cell.progress.step
        path = save_checkpoint(
            cell.folder.checkpoints,
            cell.progress.step,
            files_of(cell.shards, {}, SINGLE_PROCESS),
            cell.progress.state(),
            cell.folder.identity,
            self.keep,
        )
        logger.info("saved %s", path)
        return path
