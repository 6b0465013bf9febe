"""The next step's experts, brought while this step computes.

Two sets of buffers take turns. During step t the network reads the front set; a thread copies into the back set those experts of
step t + 1 that step t does not use. An expert of both steps is not fetched: the Adam of step t writes its new row into the back
set as it writes the store, so both hold the same. No other row changes during step t, which is why nothing has to wait.

RRE is what makes this exact: the experts of a batch are known when it is read, so nothing is guessed.

Where the device is the host itself, experts that lie next to each other in the store (the whole group of a domain) need not move at
all: the network reads them where they are, and the Adam that ends the step changes them there.

Shape suffixes: N RRE layers, K experts stored in a layer, A entries of the active list.
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
from pangu_sigma.parallel.layout import active_entries


class Brought(NamedTuple):
    """Experts of a step that are there before it, and where the updated ones go. Without a prefetcher there are none of either."""

    next_NA: Tensor | None = None
    """Entry of the next step's buffers that each active expert goes to, -1 for one that goes nowhere, int32."""
    experts: tuple[Tensor, ...] = ()
    """Weights of the active experts, in the order of the store's: what `ExpertStore.fetch` hands on."""
    buffers: tuple[Tensor, ...] = ()
    """Buffers of the next step's experts, in the same order and shapes."""

    def arguments(self) -> tuple[Any, ...]:
        """The last arguments of `TrainStep`, in its order."""
        return self.next_NA, *self.experts, *self.buffers


@dataclass(frozen=True)
class Traffic:
    """The traffic of a step between host and device. An expert of several layers counts once in each."""

    fetched_bytes: int
    """Weights copied from the store, in the dtype of the network."""
    refreshed_bytes: int
    """Weights of experts that the step before used too: written by its Adam, not fetched."""
    returned_bytes: int
    """Gradients that came back to the host."""
    hits: int
    misses: int
    """Number of active experts that were there already (hits), and that had to be fetched (misses)."""
    stall_seconds: float
    """Seconds that the step waited for its experts."""


class Prefetcher:
    """Brings the experts of `TrainStep` from a store: call `transfer`, then the step, in turn."""

    def __init__(self, store: HostStore, entries: int, in_place: bool = True):
        """entries: A. in_place: True reads experts where they are if that is possible; False copies them, as a device must."""
        self._store = store
        self._stored = store.weights[0].shape[0]
        dtype = np.float16 if store.dtype == ms.float16 else np.float32
        shapes = [(entries, *weight.shape[1:]) for weight in store.weights]
        self._sets = [[np.zeros(shape, dtype) for shape in shapes] for _ in range(2)]
        self._buffers = [[Tensor.from_numpy(a) for a in arrays] for arrays in self._sets]
        self._experts = [
            list(buffers) for buffers in self._buffers
        ]  # what the network reads: buffers, or rows of the store
        self._in_place = in_place and dtype == np.float32 and ms.get_context("device_target") == "CPU"
        self._filling = 0  # the set that the thread fills for the coming step
        self._row_bytes = sum(a[0].nbytes for a in self._sets[0]) // store.layers
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._announced: np.ndarray | None = None
        self._brought: Future[int] | None = None
        self._hits = self._refreshed = 0

    def transfer(self, active_NA: np.ndarray, coming_NA: np.ndarray) -> tuple[Brought, Traffic]:
        """The experts of the step that uses `active_NA`; the experts `coming_NA` of the step after it start to move.

        The step must run after this and before the next call. Both are routing plans' active lists, whose unused entries hold K.
        """
        started = time.perf_counter()
        announced, self._announced = self._announced, None  # an error may come before the next ones are announced
        if announced is None or not np.array_equal(announced, active_NA):
            self._settle()
            self._start(active_NA, np.full_like(active_NA, self._stored))
        misses, hits, refreshed = self._settle(), self._hits, self._refreshed
        stall = time.perf_counter() - started
        front, self._filling = self._filling, 1 - self._filling
        next_NA = self._start(coming_NA, active_NA)
        self._announced = coming_NA.copy()
        traffic = Traffic(
            fetched_bytes=misses * self._row_bytes,
            refreshed_bytes=refreshed * self._row_bytes,
            returned_bytes=int((active_NA < self._stored).sum()) * self._row_bytes,
            hits=hits + refreshed,
            misses=misses,
            stall_seconds=stall,
        )
        return Brought(Tensor(next_NA), tuple(self._experts[front]), tuple(self._buffers[self._filling])), traffic

    def _start(self, coming_NA: np.ndarray, active_NA: np.ndarray) -> np.ndarray:
        """Begin to fill a set. Returns the entry of it that each expert of `active_NA` goes to, -1 for one that goes nowhere."""
        next_NA = np.full_like(active_NA, -1)
        rows = [weight.asnumpy() for weight in self._store.weights]
        wanted: list[tuple[int, int, int]] = []
        self._hits = self._refreshed = 0
        for layer, (coming_A, active_A) in enumerate(zip(coming_NA, active_NA, strict=True)):
            tensors = range(layer * self._store.tensors, (layer + 1) * self._store.tensors)
            in_place = self._in_place and coming_A[-1] < self._stored and (np.diff(coming_A) == 1).all()
            for i in tensors:
                here = Tensor.from_numpy(rows[i][coming_A[0] : coming_A[-1] + 1]) if in_place else None
                self._experts[self._filling][i] = self._buffers[self._filling][i] if here is None else here
            if in_place:
                self._hits += len(coming_A)
                continue
            entries = {int(expert): entry for entry, expert in enumerate(active_A)}
            for entry, expert in enumerate(coming_A[coming_A < self._stored].tolist()):
                if expert in entries:
                    next_NA[layer, entries[expert]] = entry
                    self._refreshed += 1
                else:
                    wanted.append((layer, entry, expert))
        self._brought = self._thread.submit(
            self._bring, rows, self._sets[self._filling], wanted, coming_NA.copy(), active_NA.copy()
        )
        return next_NA

    def _bring(
        self,
        rows: list[np.ndarray],
        buffers: list[np.ndarray],
        wanted: list[tuple[int, int, int]],
        coming_NA: np.ndarray,
        active_NA: np.ndarray,
    ) -> int:
        store = self._store
        for layer, coming_A in enumerate(coming_NA):
            for expert in coming_A[coming_A < self._stored].tolist():
                store.tier.expect(layer, expert)
        for layer, entry, expert in wanted:
            for i in range(layer * store.tensors, (layer + 1) * store.tensors):
                copy_rows(rows[i][expert], buffers[i][entry])
        needed_NA = np.concatenate([active_NA, coming_NA], axis=1)
        store.tier.used([needed_A[needed_A < self._stored] for needed_A in needed_NA])
        return len(wanted)

    def _settle(self) -> int:
        """Wait for the thread. Returns the number of experts that it brought."""
        brought, self._brought = self._brought, None
        return brought.result() if brought is not None else 0


def make_prefetcher(config: Config, store: ExpertStore, in_place: bool = True) -> Prefetcher | None:
    """The prefetcher of a store: there is one if its experts are on the host and `ecss.prefetch` asks for it.

    in_place: False copies experts even where the network could read them from the store.
    """
    if not isinstance(store, HostStore) or not store.layers or not config.ecss.prefetch:
        return None
    return Prefetcher(store, active_entries(config), in_place)
