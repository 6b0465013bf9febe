"""What a step is given: its batch, and its experts, both made ready while the step before computed."""

from __future__ import annotations

from typing import NamedTuple

from mindspore import Tensor

from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch, Batches
from pangu_sigma.data.lookahead import Lookahead
from pangu_sigma.data.order import Cursor
from pangu_sigma.data.step_arrays import StepArrays
from pangu_sigma.ecss.prefetch import Prefetcher, Traffic
from pangu_sigma.ecss.store import ExpertStore, HostStore
from pangu_sigma.model.declare import as_tensor
from pangu_sigma.parallel.layout import active_entries


class Fed(NamedTuple):
    """One step's part. `TrainStep` takes arrays and transfer, in this order, after the learning rate."""

    batch: Batch
    cursor: Cursor
    """Where the batches go on after this one."""
    arrays: StepArrays
    transfer: tuple[Tensor, ...]
    """Of the prefetcher; empty without one."""
    traffic: Traffic | None


class Feed:
    """Batches from a cursor on, with the experts that each of them uses: `take`, then the step, in turn."""

    def __init__(
        self,
        config: Config,
        batches: Batches,
        cursor: Cursor,
        store: ExpertStore,
        in_place: bool = True,
        prefetch: bool = True,
    ):
        """in_place: of the prefetcher, which there is when experts are on the host, `ecss.prefetch` asks for it, and the step takes
        what it brings (prefetch)."""
        self._lookahead = Lookahead(batches, cursor)
        self._store = store
        self._prefetcher = None
        if isinstance(store, HostStore) and store.layers > 0 and config.ecss.prefetch and prefetch:
            self._prefetcher = Prefetcher(store, active_entries(config), in_place)

    def take(self) -> Fed:
        """The next step's part. Raises DataError as `Batches.next` does."""
        batch, cursor, coming = self._lookahead.take()
        arrays = StepArrays(*map(as_tensor, batch.arrays()))
        if self._prefetcher is None:
            self._store.tier.release()  # what the step before looked up
            return Fed(batch, cursor, arrays, (), None)
        return Fed(batch, cursor, arrays, *self._prefetcher.transfer(batch.active_NA, coming.active_NA))
