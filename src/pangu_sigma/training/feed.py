"""Input pipeline of the training loop: the batch of each step, prepared while the previous step computes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pangu_sigma.data.batches import Batch, BatchLoader, Lookahead, StepArrays
from pangu_sigma.data.order import Cursor
from pangu_sigma.ecss.store import ExpertStore
from pangu_sigma.model.declare import as_input


class StepInput(NamedTuple):
    """Input of one training step: its batch with the rows of its tokens."""

    batch: Batch
    cursor: Cursor
    """Position in the data after this batch."""
    e_GTH: np.ndarray | tuple[()]
    """Rows of the batch's tokens (`model.rows`); () without rows."""

    @property
    def arrays(self) -> StepArrays:
        """Input arrays of the graph of a process on CPUs, copied at each call."""
        return StepArrays(*map(as_input, self.batch.arrays(self.e_GTH)))


class InputPipeline:
    """Input pipeline of training: batches in the order of training. Call `take` before each step."""

    def __init__(self, batches: BatchLoader, cursor: Cursor, store: ExpertStore):
        """cursor: position in the data at which the first batch begins."""
        self._lookahead = Lookahead(batches, cursor)
        self._store = store

    def take(self) -> StepInput:
        """Return the batch of the next step, and let the store read ahead the rows and experts of the batch after it. Raises
        DataError for damaged data."""
        batch, cursor, following_batch = self._lookahead.take()
        e_GTH = self._store.rows_of(batch.own_row_keys)
        if self._store.rows:
            self._store.rows.read_ahead(following_batch.row_keys_EGBS)
        self._store.tier.read_ahead(batch.active_A, following_batch.active_A)
        return StepInput(batch, cursor, e_GTH)
