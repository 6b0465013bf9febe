"""Adam of a store's experts behind the step: a worker thread of the host updates rows in place while the graph goes on.

    StartUpdate   gradients of a segment and the step's norm are known: the worker may update the segment's experts
    Await         in the next forward pass, in front of the segment's FFN: waits until its experts are updated, and copies the
                  active ones to where the network reads them
    FetchStored   the same, and gives their weights as values: for a device with a memory of its own

The arrays are registered by address and are in no graph; only gradients, lists of rows and tokens are, and these order the
operators. No address is in a graph either: operators name their worker by a number, which each process registers anew. Results are
those of `AdamRows` bit for bit. Shape suffixes: A active experts; `*` any shape.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import functional as F

from ascend_ops.host import host_op
from ascend_ops.library import cpu_library

_MOST_SPANS = 4096


class AdamWorkerError(RuntimeError):
    """Error of an update behind the step: the worker or a step failed, and experts may be half updated."""


class Span(NamedTuple):
    """Time in which the worker updated one segment, in seconds of `time.perf_counter`'s clock."""

    begin: float
    end: float
    segment: int


class WorkerTimes(NamedTuple):
    """Seconds of the worker since they were last read."""

    busy: float
    """Seconds in which the worker updated."""
    waited: float
    """Seconds in which a step waited for the worker: in `Await` or in `FetchStored`."""


class AdamWorker:
    """The worker of a store. It lives as long as this object; operators that use it afterwards raise RuntimeError (5)."""

    def __init__(self, segments: int, copies_gradients: bool = False):
        """segments: number of segments. copies_gradients: True if the memory of gradients is used for something else after
        `StartUpdate`.

        Workers are numbered 0, 1, … in a process, so that the same program has the same graphs.
        """
        library = _library()
        self._number = library.WorkerNew(segments, copies_gradients)
        self._arrays: dict[int, list[np.ndarray]] = {}  # kept alive: the worker has their addresses alone
        self._stop = weakref.finalize(self, library.WorkerFree, self._number)

    def register(
        self,
        segment: int,
        weights: Sequence[np.ndarray],
        moments: Sequence[np.ndarray],
        variances: Sequence[np.ndarray],
        steps: np.ndarray,
        decay: Sequence[float],
        active_A: np.ndarray | None = None,
        fetched: Sequence[np.ndarray] = (),
    ) -> None:
        """Tell the worker the arrays of a segment, each [K, *], as `AdamRows` takes them. They stay where they are until the next
        call.

        active: row numbers; the next `Await` copies these rows of each tensor, K, the number of rows, gives zeros. fetched: arrays
        [A, *], one for each tensor, float32 or float16, to which `Await` copies.
        """
        arrays = [array for tensor in zip(weights, moments, variances, strict=True) for array in tensor]
        assert all(w.dtype == np.float32 for w in weights) and all(array.flags.c_contiguous for array in arrays)
        addresses = np.array([array.ctypes.data for array in arrays], np.int64)
        width, rates = np.array([w[0].size for w in weights], np.int64), np.array(decay, np.float32)
        state = addresses.ctypes.data, moments[0].dtype != np.float32, width.ctypes.data, rates.ctypes.data
        active_A = np.zeros(0, np.int32) if active_A is None else active_A
        assert active_A.dtype == np.int32
        destinations = np.array([array.ctypes.data for array in fetched], np.int64)
        is_half = bool(fetched) and fetched[0].dtype == np.float16
        copy = len(active_A), active_A.ctypes.data, destinations.ctypes.data, is_half
        _library().WorkerRegister(self._number, segment, len(weights), *state, steps.ctypes.data, len(steps), *copy)
        self._arrays[segment] = [*arrays, steps, *fetched]

    def at(self, segment: int) -> Tensor:
        """Return the numbers of the worker and of a segment, int64 [2], by which an operator finds them."""
        return Tensor(np.array([self._number, segment], np.int64))

    def settle(self) -> None:
        """Wait until all updates are done. Raises AdamWorkerError if the worker or a step failed."""
        if _library().WorkerSettle(self._number):
            raise AdamWorkerError(
                "a step or the update of experts behind it failed: experts may be half updated; go on from the last checkpoint"
            )

    def read(self) -> tuple[WorkerTimes, list[Span]]:
        """Return the seconds since the last call, and the updates of segments since then, at most the first 4,096 updates."""
        waited, rows = np.zeros(1), np.zeros((_MOST_SPANS, 3))
        count = _library().WorkerRead(self._number, waited.ctypes.data, rows.ctypes.data, _MOST_SPANS)
        spans = [Span(begin, end, int(segment)) for begin, end, segment in rows[:count].tolist()]
        return WorkerTimes(sum(span.end - span.begin for span in spans), float(waited[0])), spans

    def fail(self) -> None:
        """Make all operators and every `settle` fail from now on, because a step failed and nobody knows what it updated."""
        _library().WorkerFail(self._number)


class StartUpdate(nn.Cell):
    """Let the worker update a segment: construct(grads, active_A, offsets_A1, hyper) -> token [1]
    Arguments as in `AdamRows`. Gradients must keep their memory until the next `Await` of the segment.
    Raises RuntimeError as `AdamRows` does, and for a worker or a segment without arrays (5), after the worker failed (8), or for a
    segment whose last update was not awaited (9)."""

    def __init__(self, worker: AdamWorker, segment: int):
        super().__init__()
        self.op, self.at = _token_op("StartUpdate"), worker.at(segment)

    def construct(self, grads, active_A, offsets_A1, hyper):
        return self.op(*grads, active_A, offsets_A1, hyper, self.at)


class Await(nn.Cell):
    """Wait until a segment's experts are updated, and copy the active ones as `AdamWorker.register` says: construct(rows) -> rows,
    unchanged. rows: what its FFN multiplies next, so that the operator has its turn behind the layers below.

    Raises RuntimeError if the worker failed (8), there is none (5), or it has no such row (4)."""

    def __init__(self, worker: AdamWorker, segment: int):
        super().__init__()
        self.op, self.at = _token_op("Await"), worker.at(segment)

    def construct(self, rows):
        return F.depend(rows, self.op(rows, self.at))

    def bprop(self, rows, out, dout):
        return (dout,)


class FetchStored(nn.Cell):
    """Look up weights of a segment's experts, once they are updated: construct(active_A, like, token) -> (*rows, token [1])
        active: int32 row numbers; K, the number of rows of the store, is an unused entry and gives zeros.
        like: tuple of G tensors [A, *], float32, float16 or bfloat16, of which only shape and dtype are read, and which get the
        gradients of the rows. They are inputs because a parallel plan cuts tensors after shapes were inferred, while a host store
        has its rank's shape from the start.
        token: a number [1] that only says when: that of the look-up before, so that no more than one waits at a time.
    Raises RuntimeError for a row outside the store (the kernel returns 4), sizes that do not fit (3), another dtype (2) or number
    of tensors (1), for a worker or a segment without arrays (5), or after the worker failed (8)."""

    def __init__(self, worker: AdamWorker, segment: int, tensors: int):
        """tensors: the number of tensors of the segment, G: 4, or 3 without b2."""
        super().__init__()
        self.tensors = tensors
        self.op = host_op(
            "FetchStored",
            lambda active, *others: (*others[:tensors], (1,)),
            lambda active, *others: (*others[:tensors], ms.float32),
            bprop=_to_three if tensors == 3 else _to_four,
        )
        self.op.add_prim_attr("tensors", tensors)  # operators with equal attributes share a gradient rule in MindSpore
        self.at = worker.at(segment)

    def construct(self, active_A, like, token):
        return self.op(active_A, *like, token, self.at)


def _to_three(active, w1, b1, w2, token, at, out, dout):  # two rules, because MindSpore takes none with *like
    return F.zeros_like(active), dout[0], dout[1], dout[2], F.zeros_like(token), F.zeros_like(at)


def _to_four(active, w1, b1, w2, b2, token, at, out, dout):
    return F.zeros_like(active), dout[0], dout[1], dout[2], dout[3], F.zeros_like(token), F.zeros_like(at)


def _token_op(function: str) -> ops.Custom:
    return host_op(function, lambda *shapes: (1,), lambda *dtypes: ms.float32)


@cache
def _library() -> ctypes.CDLL:
    """Return the library of the CPU kernels, with the signatures of the worker's functions."""
    library, pointer, number = ctypes.CDLL(cpu_library()), ctypes.c_void_p, ctypes.c_int64
    signatures = {
        "WorkerNew": ([number, number], number),
        "WorkerFree": ([number], None),
        "WorkerRegister": (
            [number] * 3 + [pointer, number, pointer, pointer, pointer, number, number, pointer, pointer, number],
            None,
        ),
        "WorkerSettle": ([number], number),
        "WorkerRead": ([number, pointer, pointer, number], number),
        "WorkerFail": ([number], None),
    }
    for name, (arguments, result) in signatures.items():
        getattr(library, name).argtypes, getattr(library, name).restype = arguments, result
    return library
