"""Prefetch of the next step's experts while a step computes.

Two sets of buffers alternate. During step t the network reads the front set; a thread copies into the back set those experts of
step t + 1 that step t does not use. An expert of both steps is not fetched: the Adam of step t writes its updated row into both the
store and the back set. No other row changes during step t, so nothing has to wait.

RRE makes this exact: the experts of a batch are known when it is read, so no prediction is needed.

If the device is the CPU, experts that are adjacent in the store (such as the whole group of a domain) are not copied at all: the
network reads them in place, and Adam updates them there.

Shape suffixes: N segments of the RRE layers, K experts stored in a segment, A entries of the active list.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ascend_ops.half import copy_rows
from pangu_sigma.config import Config
from pangu_sigma.ecss.store import ExpertStore, HostStore


class PrefetchedExperts(NamedTuple):
    """Prefetched experts of a step, and the buffers for the next step's experts. Empty without a prefetcher."""

    next_NA: Tensor | None = None
    """Entry of the next step's buffers to which each active expert is copied after its update, -1 for none, int32."""
    experts: tuple[Tensor, ...] = ()
    """Weights of the active experts, in the order of the store's tensors. `ExpertStore.fetch` returns them unchanged."""
    buffers: tuple[Tensor, ...] = ()
    """Buffers of the next step's experts, in the same order and shapes."""

    def arguments(self) -> tuple[Any, ...]:
        """Return these tensors as the last arguments of the graph of `TrainStep`, in its order."""
        return self.next_NA, *self.experts, *self.buffers


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
        self._store = store
        self._stored_N1 = np.array(store.rows)[:, None]
        dtype = np.float16 if store.dtype == ms.float16 else np.float32
        self._sets = [[np.zeros(shape, dtype) for shape in store.active_shapes] for _ in range(2)]
        self._buffers = [[Tensor.from_numpy(a) for a in arrays] for arrays in self._sets]
        # the tensors that the network reads: buffers, or rows of the store
        self._experts = [list(buffers) for buffers in self._buffers]
        self._in_place = in_place and dtype == np.float32 and ms.get_context("device_target") == "CPU"
        self._filling = 0  # the set that the thread fills for the coming step
        self._row_bytes_N = np.array([sum(a[0].nbytes for a in self._sets[0][span]) for span in store.spans])
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._announced: np.ndarray | None = None
        self._brought: Future[np.ndarray] | None = None
        self._hits, self._refreshed_N = 0, np.zeros(store.segments, np.int64)

    def transfer(self, active_NA: np.ndarray, coming_NA: np.ndarray) -> tuple[PrefetchedExperts, Traffic]:
        """Return the experts `active_NA` of the next step to run, and start to fetch the experts `coming_NA` of the step after it.

        The step must run before the next call. Both arguments are active lists of routing plans, whose unused entries hold K.
        """
        started = time.perf_counter()
        announced, self._announced = self._announced, None  # stays None if an error is raised below
        if announced is None or not np.array_equal(announced, active_NA):
            self._settle()
            self._start(active_NA, np.broadcast_to(self._stored_N1, active_NA.shape).astype(active_NA.dtype))
        misses_N, hits, refreshed_N = self._settle(), self._hits, self._refreshed_N
        stall = time.perf_counter() - started
        front, self._filling = self._filling, 1 - self._filling
        next_NA, learned = self._start(coming_NA, active_NA), self._store.learned
        self._announced = coming_NA.copy()
        traffic = Traffic(
            fetched_bytes=int(misses_N @ self._row_bytes_N),
            refreshed_bytes=int(refreshed_N @ self._row_bytes_N),
            returned_bytes=int((active_NA < self._stored_N1).sum(axis=1)[learned] @ self._row_bytes_N[learned]),
            hits=hits + int(refreshed_N.sum()),
            misses=int(misses_N.sum()),
            stall_seconds=stall,
        )
        return PrefetchedExperts(
            Tensor(next_NA), tuple(self._experts[front]), tuple(self._buffers[self._filling])
        ), traffic

    def _start(self, coming_NA: np.ndarray, active_NA: np.ndarray) -> np.ndarray:
        """Start to fill the back set with the experts `coming_NA`. Returns the set's entry of each expert of `active_NA`, or -1."""
        next_NA = np.full_like(active_NA, -1)
        rows = [weight.asnumpy() for weight in self._store.weights]
        missing: list[tuple[int, int, int]] = []
        self._hits, self._refreshed_N = 0, np.zeros(self._store.segments, np.int64)
        for n, (coming_A, active_A) in enumerate(zip(coming_NA, active_NA, strict=True)):
            coming_A, span, stored = coming_A[: self._store.entries[n]], self._store.spans[n], self._store.rows[n]
            in_place = self._in_place and coming_A[-1] < stored and (np.diff(coming_A) == 1).all()
            for i in range(span.start, span.stop):
                view = Tensor.from_numpy(rows[i][coming_A[0] : coming_A[-1] + 1]) if in_place else None
                self._experts[self._filling][i] = self._buffers[self._filling][i] if view is None else view
            if in_place:
                self._hits += len(coming_A)
                continue
            entries = {int(expert): entry for entry, expert in enumerate(active_A)}
            for entry, expert in enumerate(coming_A[coming_A < stored].tolist()):
                if expert in entries and n in self._store.learned:
                    next_NA[n, entries[expert]] = entry
                    self._refreshed_N[n] += 1
                else:
                    missing.append((n, entry, expert))
        self._brought = self._thread.submit(
            self._bring, rows, self._sets[self._filling], missing, coming_NA.copy(), active_NA.copy()
        )
        return next_NA

    def _bring(
        self,
        rows: list[np.ndarray],
        buffers: list[np.ndarray],
        missing: list[tuple[int, int, int]],
        coming_NA: np.ndarray,
        active_NA: np.ndarray,
    ) -> np.ndarray:
        store = self._store
        store.settle()  # rows of the step before may still be updated
        for n, coming_A in enumerate(coming_NA):
            for expert in coming_A[coming_A < store.rows[n]].tolist():
                store.tier.prefetch(n, expert)
        for n, entry, expert in missing:
            for i in range(store.spans[n].start, store.spans[n].stop):
                copy_rows(rows[i][expert], buffers[i][entry])
        needed_NA = np.concatenate([active_NA, coming_NA], axis=1)
        store.tier.used([needed_A[needed_A < rows] for needed_A, rows in zip(needed_NA, store.rows, strict=True)])
        return np.bincount([n for n, _, _ in missing], minlength=store.segments)

    def _settle(self) -> np.ndarray:
        """Wait for the thread. Returns the number of experts that it fetched of each segment, [N]."""
        brought, self._brought = self._brought, None
        return brought.result() if brought is not None else np.zeros(self._store.segments, np.int64)


def make_prefetcher(config: Config, store: ExpertStore, in_place: bool = True) -> Prefetcher | None:
    """Make the prefetcher of a host store; None for other stores or without `ecss.prefetch`. in_place: True to let the network read
    experts in the store, without a copy, where it can."""
    if not isinstance(store, HostStore) or not store.segments or not config.ecss.prefetch:
        return None
    return Prefetcher(store, in_place)
