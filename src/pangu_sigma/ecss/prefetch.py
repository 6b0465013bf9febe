"""Prefetch of the next step's experts while a step computes.

Two sets of buffers alternate. During step t the network reads the front set; a thread copies into the back set those experts of
step t + 1 that step t does not use. An expert of both steps is not fetched: the Adam of step t writes its updated row into both the
store and the back set. No other row changes during step t, so nothing has to wait.

RRE makes this exact: the experts of a batch are known when it is read, so no prediction is needed.

If the device is the CPU, experts that are adjacent in the store (such as the whole group of a domain) are not copied at all: the
network reads them in place, and Adam updates them there.

Shape suffixes: N segments of the RRE layers, K experts stored in a segment, A entries of its active list.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ascend_ops.half import copy_rows
from pangu_sigma.config import Config
from pangu_sigma.ecss.store import ExpertStore, HostStore
from pangu_sigma.model.declare import as_input


class PrefetchedExperts(NamedTuple):
    """Prefetched experts of a step, and the buffers for the next step's experts: tuples over the
    segments, the last arguments of the graph of `TrainStep`. Empty without a prefetcher."""

    next_A: Any = ()
    """Entry of the next step's buffers to which each active expert is copied after its update, -1 for none, int32."""
    experts: Any = ()
    """Weights of the active experts, as `ExpertStore.fetch` would return them."""
    buffers: Any = ()
    """Buffers of the next step's experts, in the same order and shapes."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of experts that a training step moves between host and device, and its prefetch hits, summed over RRE layers."""

    fetched_bytes: int
    """Bytes of weights copied from the store, in the dtype of the network."""
    refreshed_bytes: int
    """Bytes of weights of experts that the previous step used too: written by its Adam, not fetched."""
    returned_bytes: int
    """Bytes of gradients returned to the host."""
    hits: int
    misses: int
    """Number of active experts refreshed or read in place (hits), and fetched from the store (misses)."""
    stall_seconds: float
    """Time that the step waited for its experts, in seconds."""


class Prefetcher:
    """Prefetcher of a training step's active experts from the host store. Call `transfer` before each step."""

    def __init__(self, store: HostStore, in_place: bool = True):
        """in_place: True to read experts in the store if possible; False to copy them all."""
        self._store, self._segments = store, [experts.segment for experts in store.segments]
        half = store.dtype == ms.float16
        dtype, shapes = np.float16 if half else np.float32, [experts.active_shapes for experts in store.segments]
        self._sets = [[[np.zeros(shape, dtype) for shape in of] for of in shapes] for _ in range(2)]
        self._buffers = [[tuple(map(Tensor.from_numpy, arrays)) for arrays in of_set] for of_set in self._sets]
        # the tensors that the network reads: buffers, or rows of the store
        self._experts = [list(buffers) for buffers in self._buffers]
        self._in_place = in_place and not half and ms.get_context("device_target") == "CPU"
        self._filling = 0  # the set that the thread fills for the coming step
        self._row_bytes_N = np.array([sum(a[0].nbytes for a in arrays) for arrays in self._sets[0]])
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._announced: list[np.ndarray] | None = None
        self._brought: Future[np.ndarray] | None = None
        self._hits, self._refreshed_N = 0, np.zeros(len(shapes), np.int64)

    def transfer(
        self, active_A: Sequence[np.ndarray], coming_A: Sequence[np.ndarray]
    ) -> tuple[PrefetchedExperts, Traffic]:
        """Return the experts `active_A` of the next step to run, and start to fetch the experts `coming_A` of the step after it.

        The step must run before the next call. Both arguments are the active lists of routing plans, one for each segment.
        """
        started = time.perf_counter()
        announced, self._announced = self._announced, None  # stays None if an error is raised below
        if announced is None or not all(map(np.array_equal, announced, active_A)):
            self._settle()
            self._start(active_A, [np.full_like(a, s.stored) for a, s in zip(active_A, self._segments, strict=True)])
        misses_N, hits, refreshed_N = self._settle(), self._hits, self._refreshed_N
        stall = time.perf_counter() - started
        front, self._filling = self._filling, 1 - self._filling
        next_A = self._start(coming_A, active_A)
        self._announced = [coming.copy() for coming in coming_A]
        returned_N = [s.learns * (a < s.stored).sum() for a, s in zip(active_A, self._segments, strict=True)]
        traffic = Traffic(
            fetched_bytes=int(misses_N @ self._row_bytes_N),
            refreshed_bytes=int(refreshed_N @ self._row_bytes_N),
            returned_bytes=int(returned_N @ self._row_bytes_N),
            hits=hits + int(refreshed_N.sum()),
            misses=int(misses_N.sum()),
            stall_seconds=stall,
        )
        tensors = next_A, tuple(self._experts[front]), tuple(self._buffers[self._filling])
        return PrefetchedExperts(*map(as_input, tensors)), traffic

    def _start(self, coming_A: Sequence[np.ndarray], active_A: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Start to fill the back set with the experts `coming_A`. Returns the set's entry of each expert of `active_A`, or -1."""
        next_A = tuple(np.full_like(active, -1) for active in active_A)
        rows = [[weight.asnumpy() for weight in experts.weights] for experts in self._store.segments]
        missing: list[tuple[int, int, int]] = []
        self._hits, self._refreshed_N = 0, np.zeros(len(rows), np.int64)
        for n, (segment, coming, active) in enumerate(zip(self._segments, coming_A, active_A, strict=True)):
            if self._in_place and coming[-1] < segment.stored and (np.diff(coming) == 1).all():
                in_place = (array[coming[0] : coming[-1] + 1] for array in rows[n])
                self._experts[self._filling][n] = tuple(map(Tensor.from_numpy, in_place))
                self._hits += len(coming)
                continue
            self._experts[self._filling][n] = self._buffers[self._filling][n]
            entries = {int(expert): entry for entry, expert in enumerate(active)}
            for entry, expert in enumerate(coming[coming < segment.stored].tolist()):
                if expert in entries and segment.learns:
                    next_A[n][entries[expert]] = entry
                    self._refreshed_N[n] += 1
                else:
                    missing.append((n, entry, expert))
        # copies: the caller may write into its lists while the thread reads
        lists = [list(map(np.copy, lists)) for lists in (coming_A, active_A)]
        self._brought = self._thread.submit(self._bring, rows, self._sets[self._filling], missing, *lists)
        return next_A

    def _bring(
        self,
        rows: list[list[np.ndarray]],
        buffers: list[list[np.ndarray]],
        missing: list[tuple[int, int, int]],
        coming_A: list[np.ndarray],
        active_A: list[np.ndarray],
    ) -> np.ndarray:
        store, needed = self._store, []
        store.settle()  # rows of the step before may still be updated
        for segment, coming, active in zip(self._segments, coming_A, active_A, strict=True):
            both = np.concatenate([active, coming])
            needed.append(both[both < segment.stored])
            for expert in coming[coming < segment.stored].tolist():
                store.tier.prefetch(segment.number, expert)
        for n, entry, expert in missing:
            for array, buffer in zip(rows[n], buffers[n], strict=True):
                copy_rows(array[expert], buffer[entry])
        store.tier.used(needed)
        return np.bincount([n for n, _, _ in missing], minlength=len(rows))

    def _settle(self) -> np.ndarray:
        """Wait for the thread. Returns the number of experts that it fetched of each segment, [N]."""
        brought, self._brought = self._brought, None
        return brought.result() if brought is not None else np.zeros(len(self._segments), np.int64)


def make_prefetcher(config: Config, store: ExpertStore, in_place: bool = True) -> Prefetcher | None:
    """Make the prefetcher of a host store; None for other stores or without `ecss.prefetch`. in_place: True to let the network read
    experts in the store, without a copy, where it can."""
    if not isinstance(store, HostStore) or not len(store.segments) or not config.ecss.prefetch:
        return None
    return Prefetcher(store, in_place)
