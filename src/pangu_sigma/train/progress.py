"""Progress of a run: how far it is, and where it goes on."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from pangu_sigma.checkpoint.changes import Change, changed_keys
from pangu_sigma.checkpoint.checkpoint import Checkpoint
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.data.order import Cursor
from pangu_sigma.parallel.ranks import ALONE, Ranks

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """The progress of a run.

    step: number of steps that are done.
    updates: number of those that were applied; the learning rate follows it.
    cursor: the position in the data at which the next batch begins.
    """

    step: int
    updates: int
    cursor: Cursor

    def advance(self, applied: bool, cursor: Cursor) -> None:
        """Count a step.

        applied: False if its gradients overflowed and it updated nothing.
        cursor: the position in the data after its batch.
        """
        self.step += 1
        self.updates += applied
        self.cursor = cursor

    def state(self) -> dict[str, Any]:
        """The progress as plain data, for the state of a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        """The progress that `state` wrote."""
        return cls(state["step"], state["updates"], Cursor.from_state(state["cursor"]))


def resume(run: RunFolder, start: Cursor, ranks: Ranks = ALONE) -> tuple[Progress, Checkpoint | None]:
    """The progress that a run goes on from, and the checkpoint to restore its parameters from.

    A run that has saved none begins at `start`.

    ranks: all of them call this.
    Raises CheckpointError as `RunFolder.newest_checkpoint` does.
    """
    checkpoint = run.newest_checkpoint(ranks)
    if checkpoint is None:
        return Progress(0, 0, start), None
    logger.info("resuming %s after step %d", run.path, checkpoint.step)
    return Progress.from_state(checkpoint.state), checkpoint


def changes_since(checkpoint: Checkpoint | None, run: RunFolder) -> list[Change]:
    """What a run goes on with that differs from what its checkpoint was trained with: keys of the configuration, and `data`, the
    content hash of the prepared text, if both are known."""
    if checkpoint is None:
        return []
    then, now = checkpoint.identity, run.identity
    changes = changed_keys(then.config, now.config)
    if then.data_hash and now.data_hash and then.data_hash != now.data_hash:
        changes.append(("data", then.data_hash, now.data_hash))
    return changes
