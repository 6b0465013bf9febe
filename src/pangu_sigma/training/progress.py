"""Progress of a run, and resuming from its newest checkpoint."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from pangu_sigma.checkpoint.changes import Change, changed_keys
from pangu_sigma.checkpoint.checkpoint import Checkpoint, newest_checkpoint
from pangu_sigma.data.order import Cursor
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, Ranks
from pangu_sigma.stored.run import StoredRun

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Progress of a run.

    step: number of steps taken. updates: number of steps that updated the weights; the learning rate depends on it.
    cursor: position in the data at which the next batch begins.
    """

    step: int
    updates: int
    cursor: Cursor

    def advance(self, applied: bool, cursor: Cursor) -> None:
        """Count a step. applied: False if it updated nothing. cursor: position in the data after its batch."""
        self.step += 1
        self.updates += applied
        self.cursor = cursor

    def state(self) -> dict[str, Any]:
        """Return the progress as plain data, for the state of a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        """Restore the progress from what `state` returned."""
        cursor = state["cursor"]
        return cls(state["step"], state["updates"], Cursor(list(cursor["taken"]), list(cursor["begun"])))


def resume(run: StoredRun, start: Cursor, ranks: Ranks = SINGLE_PROCESS) -> tuple[Progress, Checkpoint | None]:
    """Return the progress to resume from, and the newest checkpoint to restore; if there is none, step 0 at `start`, and None.

    All ranks call this. Raises CheckpointError if no checkpoint is intact, or if it is of another vocabulary or routing table.
    """
    checkpoint = newest_checkpoint(run.checkpoints, run.identity, ranks)
    if checkpoint is None:
        return Progress(0, 0, start), None
    if checkpoint.step:  # a run that was made of another begins with a checkpoint, too
        logger.info("resuming %s after step %d", run.path, checkpoint.step)
    return Progress.from_state(checkpoint.state), checkpoint


def changes_since_checkpoint(checkpoint: Checkpoint | None, run: StoredRun) -> list[Change]:
    """Return the changes since a run's newest checkpoint was written: (key, old, new) of configuration keys, and of `data`, the
    content hash of the prepared text, if both hashes are known."""
    if checkpoint is None:
        return []
    then, now = checkpoint.identity, run.identity
    changes = changed_keys(then.config, now.config)
    if then.data_hash and now.data_hash and then.data_hash != now.data_hash:
        changes.append(("data", then.data_hash, now.data_hash))
    return changes
