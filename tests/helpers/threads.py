"""Ranks that are threads of one process, for what ranks do together on the host."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from experiments.chaos.launched import PATIENCE
from pangu_sigma.ranks.ranks import Ranks


class ThreadRanks(Ranks):
    """One of them; `sum` is what `ConnectedRanks` does, without MindSpore."""

    def __init__(self, rank: int, barrier: threading.Barrier, slots: list[Any]):
        self.rank, self.world = rank, barrier.parties
        self._barrier, self._slots = barrier, slots

    def sum(self, values: np.ndarray) -> np.ndarray:
        self._slots[self.rank] = values.astype(np.float32)
        self._barrier.wait(PATIENCE)
        total = np.sum(self._slots, axis=0)
        self._barrier.wait(PATIENCE)
        return total


def on_ranks(world: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """What `work` returned on each rank, or the exception it ended with."""
    barrier, slots = threading.Barrier(world), [None] * world

    def result(rank: int) -> Any:
        try:
            return work(ThreadRanks(rank, barrier, slots))
        except Exception as error:
            return error

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(result, range(world)))
