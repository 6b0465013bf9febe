"""Input pipeline of the training loop: batch and experts of each step, prepared while the previous step computes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pangu_sigma.data.batches import Batch, BatchLoader, Lookahead
from pangu_sigma.data.order import Cursor
from pangu_sigma.data.step_arrays import StepArrays
from pangu_sigma.ecss.prefetch import PrefetchedExperts, Prefetcher, Traffic
from pangu_sigma.ecss.store import ExpertStore
from pangu_sigma.model.declare import as_input


class StepInput(NamedTuple):
    """Input of one training step: its batch with the rows of its tokens, and prefetched experts."""

    batch: Batch
    cursor: Cursor
    """Position in the data after this batch."""
    e_GTH: np.ndarray | tuple[()]
    """Rows of the batch's tokens (`model.rows`); () without rows."""
    brought: PrefetchedExperts | None
    """Prefetched experts; None without a prefetcher."""
    traffic: Traffic | None
    """Prefetch traffic of this step; None without a prefetcher."""

    @property
    def arrays(self) -> StepArrays:
        """Input arrays of the graph of a process on CPUs, copied at each call."""
        return StepArrays(*map(as_input, self.batch.arrays(self.e_GTH)))


class InputPipeline:
    """Input pipeline of training: batches in the order of training, each with its experts. Call `take` before each step."""

    def __init__(self, batches: BatchLoader, cursor: Cursor, store: ExpertStore, prefetcher: Prefetcher | None):
        """cursor: position in the data at which the first batch begins. prefetcher: None if the step itself reads the store."""
        self._lookahead = Lookahead(batches, cursor)
        self._store = store
        self._prefetcher = prefetcher

    def take(self) -> StepInput:
        """Return batch and experts of the next step. Raises DataError for damaged data."""
        batch, cursor, coming = self._lookahead.take()
        e_GTH = self._store.rows_of(batch.own_row_keys)
        if self._store.rows:
            self._store.rows.prefetch(coming.row_keys_EGBS)
        if self._prefetcher is None:
            self._store.tier.release()  # the experts of the previous step
            return StepInput(batch, cursor, e_GTH, None, None)
        return StepInput(batch, cursor, e_GTH, *self._prefetcher.transfer(batch.active_A, coming.active_A))
