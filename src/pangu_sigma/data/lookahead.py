"""Background thread that assembles the next batches while a step computes."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy

from pangu_sigma.data.batches import Batch, BatchLoader
from pangu_sigma.data.order import Cursor


class Lookahead:
    """Iterator over the training batches after a data position, each with the next batch, whose experts can be prefetched."""

    def __init__(self, batches: BatchLoader, cursor: Cursor):
        self._batches = batches
        self._cursor = deepcopy(cursor)
        self._thread = ThreadPoolExecutor(1, "batches")
        self._coming: deque[Future[tuple[Batch, Cursor]]] = deque()

    def take(self) -> tuple[Batch, Cursor, Batch]:
        """Return the next batch, the data position after it, and the following batch. Raises the errors of `BatchLoader.next`."""
        while len(self._coming) < 3:
            self._coming.append(self._thread.submit(self._make))
        batch, cursor = self._coming.popleft().result()
        return batch, cursor, self._coming[0].result()[0]

    def _make(self) -> tuple[Batch, Cursor]:
        batch = self._batches.next(self._cursor)
        return batch, deepcopy(self._cursor)
