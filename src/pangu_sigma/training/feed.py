"""Input pipeline of the training loop: batch and experts of each step, prepared while the previous step computes."""

from __future__ import annotations

from typing import NamedTuple

from pangu_sigma.data.batches import Batch, BatchLoader, Lookahead
from pangu_sigma.data.order import Cursor
from pangu_sigma.data.step_arrays import StepArrays
from pangu_sigma.ecss.prefetch import PrefetchedExperts, Prefetcher, Traffic
from pangu_sigma.ecss.store import ExpertStore
from pangu_sigma.model.declare import as_input


class StepInput(NamedTuple):
    """Input of one training step: its batch and prefetched experts."""

    batch: Batch
    cursor: Cursor
    """Position in the data after this batch."""
    arrays: StepArrays
    brought: PrefetchedExperts | None
    """Prefetched experts; None without a prefetcher."""
    traffic: Traffic | None
    """Prefetch traffic of this step; None without a prefetcher."""


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
        rows = self._store.rows
        arrays = StepArrays(*map(as_input, batch.arrays(rows.gather(batch.own_row_keys) if rows else ())))
        if rows:
            rows.prefetch(coming.row_keys_EGBS)
        if self._prefetcher is None:
            self._store.tier.release()  # the experts of the previous step
            return StepInput(batch, cursor, arrays, None, None)
        return StepInput(batch, cursor, arrays, *self._prefetcher.transfer(batch.active_A, coming.active_A))
