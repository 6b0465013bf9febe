"""The feed of the training loop: the batch of each step and its experts, made ready while the step before computes."""

from __future__ import annotations

from typing import NamedTuple

from pangu_sigma.data.batches import Batch, Batches
from pangu_sigma.data.lookahead import Lookahead
from pangu_sigma.data.order import Cursor
from pangu_sigma.data.step_arrays import StepArrays
from pangu_sigma.ecss.prefetch import Brought, Prefetcher, Traffic
from pangu_sigma.ecss.store import ExpertStore
from pangu_sigma.model.declare import as_tensor


class Fed(NamedTuple):
    """The batch and the experts of one step. `TrainStep.take` takes arrays and experts."""

    batch: Batch
    cursor: Cursor
    """The position in the data after this batch."""
    arrays: StepArrays
    brought: Brought | None
    """The experts that the prefetcher brought; None without a prefetcher."""
    traffic: Traffic | None
    """What the prefetcher moved for this step; None without a prefetcher."""


class Feed:
    """Gives the batches from a cursor on, with the experts that each of them uses: call `take`, then the step, in turn."""

    def __init__(self, batches: Batches, cursor: Cursor, store: ExpertStore, prefetcher: Prefetcher | None):
        """cursor: the position in the data at which the first batch begins.
        prefetcher: what brings the experts; None if the step looks them up in the store itself.
        """
        self._lookahead = Lookahead(batches, cursor)
        self._store = store
        self._prefetcher = prefetcher

    def take(self) -> Fed:
        """The batch and the experts of the next step. Raises DataError as `Batches.next` does."""
        batch, cursor, coming = self._lookahead.take()
        arrays = StepArrays(*map(as_tensor, batch.arrays()))
        if self._prefetcher is None:
            self._store.tier.release()  # what the step before looked up
            return Fed(batch, cursor, arrays, None, None)
        return Fed(batch, cursor, arrays, *self._prefetcher.transfer(batch.active_NA, coming.active_NA))
