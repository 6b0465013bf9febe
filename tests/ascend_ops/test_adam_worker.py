"""The worker behind the step: the bytes of `AdamRows`, and a number, not an address, by which a graph finds it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ascend_ops.adam import HYPER
from ascend_ops.adam_worker import AdamWorker, AdamWorkerError

ROWS, ACTIVE, WIDTHS = 7, 3, (2500, 40)
"""Stored and active experts of a segment, and the elements of its two tensors: one of several blocks, and one of less than one."""
CLEAN = {"lr": 1e-2, "grad_scale": 0.5, "apply": 1.0, "beta1": 0.8, "beta2": 0.95, "eps": 1e-20}
KINDS = {
    "clean": {},
    "clipped": {"grad_scale": 0.125},
    "overflow": {"apply": 0.0, "grad_scale": np.nan},
    "spike": {"apply": 0.0},
}


class Segments:
    """Two segments with state, updated by the worker or by `AdamRows`."""

    def __init__(self, call: Callable[..., int], moments: type = np.float32, widths: tuple[int, ...] = WIDTHS):
        rng = np.random.default_rng(0)
        self.call = call
        self.w = [[rng.normal(size=(ROWS, width)).astype(np.float32) for width in widths] for _ in range(2)]
        self.m, self.v = ([[np.zeros((ROWS, width), moments) for width in widths] for _ in range(2)] for _ in "mv")
        self.step = [np.zeros(ROWS, np.int32) for _ in range(2)]
        self.decay = np.array([0.1, 0.0], np.float32)

    def registered(self, **options: Any) -> AdamWorker:
        worker = AdamWorker(2, **options)
        for n in range(2):
            worker.register(n, self.w[n], self.m[n], self.v[n], self.step[n], self.decay.tolist())
        return worker

    def bytes(self) -> list[bytes]:
        arrays = [a for of in (self.w, self.m, self.v) for arrays in of for a in arrays]
        return [array.tobytes() for array in [*arrays, *self.step]]

    def adam_rows(self, n: int, grads: list[np.ndarray], lists: list[np.ndarray], hyper: np.ndarray) -> None:
        arrays = [*self.w[n], *self.m[n], *self.v[n], *grads, self.step[n], *lists, hyper, self.decay]
        assert not self.call("AdamRows", *arrays, np.zeros(1, np.float32))

    def start(self, at: np.ndarray, grads: list[np.ndarray], lists: list[np.ndarray], hyper: np.ndarray) -> int:
        return self.call("StartUpdate", *grads, *lists, hyper, at, np.zeros(1, np.float32))

    def wait(self, at: np.ndarray) -> int:
        return self.call("Await", np.zeros(1, np.float32), at, np.zeros(1, np.float32))


def at(worker: AdamWorker, n: int) -> np.ndarray:
    return worker.at(n).asnumpy()


def hyper_of(kind: str) -> np.ndarray:
    values = CLEAN | KINDS[kind]
    return np.array([values[name] for name in HYPER], np.float32)


def drawn(
    rng: np.random.Generator, dtype: type, widths: tuple[int, ...] = WIDTHS
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Gradients of a segment, and which rows, with how many tokens."""
    grads = [rng.normal(size=(ACTIVE, width)).astype(dtype) for width in widths]
    offsets = np.cumsum([0, *rng.integers(0, 3, ACTIVE)]).astype(np.int32)
    return grads, [np.sort(rng.permutation(ROWS)[:ACTIVE]).astype(np.int32), offsets]


@pytest.mark.parametrize(
    ("options", "moments", "dtype"),
    [
        ({}, np.float32, np.float32),
        ({}, np.float32, np.float16),
        ({}, np.uint16, np.float32),
        ({"copies_gradients": True}, np.float32, np.float32),
    ],
    ids=["float32", "float16", "bfloat16 moments", "own gradients"],
)
def test_random_sequences_of_clipped_overflowed_spiked_and_clean_steps_give_the_bytes_of_adam_rows(
    call_kernel: Callable[..., int], options: dict[str, Any], moments: type, dtype: type
):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        ours, theirs = (Segments(call_kernel, moments) for _ in range(2))
        worker, held = ours.registered(**options), []
        for _ in range(6):
            kind = rng.choice(list(KINDS), p=[0.4, 0.3, 0.15, 0.15])
            parts = [drawn(rng, dtype) for _ in range(2)]
            held.append(parts)  # gradients stay where they are until they are awaited
            if kind == "overflow":
                parts[0][0][0][0, 0] = np.nan
            for n in rng.permutation(2).tolist():
                assert not ours.wait(at(worker, n))
                assert not ours.start(at(worker, n), *parts[n], hyper_of(kind))
                if options.get("copies_gradients"):
                    theirs_now = [grad.copy() for grad in parts[n][0]]
                    for grad in parts[n][0]:
                        grad[...] = 0.0
                    parts[n][0][:] = theirs_now
                theirs.adam_rows(n, *parts[n], hyper_of(kind))
        worker.settle()
        assert ours.bytes() == theirs.bytes(), seed


def test_a_segment_is_updated_once_at_a_time_with_known_arrays_and_rows(call_kernel: Callable[..., int]):
    wide = (1 << 19, 40)  # an update takes longer than the call that starts the next
    ours, rng = Segments(call_kernel, widths=wide), np.random.default_rng(0)
    worker, empty, (grads, lists) = ours.registered(), AdamWorker(2), drawn(rng, np.float32, wide)
    assert ours.start(at(empty, 0), grads, lists, hyper_of("clean")) == 5, "no arrays"
    assert ours.wait(at(worker, 2)) == 5, "no segment"
    lists[1][:] = np.arange(ACTIVE + 1)
    before = ours.bytes()
    outside = [np.array([0, 1, ROWS], np.int32), *lists[1:]]
    assert ours.start(at(worker, 0), grads, outside, hyper_of("clean")) == 4
    worker.settle()
    assert ours.bytes() == before
    actual = [ours.start(at(worker, 0), grads, lists, hyper_of("clean")) for _ in range(100)]
    assert set(actual) == {0, 9}, "9: not awaited"
    worker.settle()
    assert ours.step[0].max() == actual.count(0)


def test_a_failed_worker_fails_every_operator_and_every_wait(call_kernel: Callable[..., int]):
    ours, rng = Segments(call_kernel), np.random.default_rng(0)
    worker = ours.registered()
    grads, lists = drawn(rng, np.float32)
    assert not ours.start(at(worker, 0), grads, lists, hyper_of("clean"))
    worker.fail()
    assert ours.wait(at(worker, 0)) == ours.start(at(worker, 1), grads, lists, hyper_of("clean")) == 8
    with pytest.raises(AdamWorkerError, match="go on from the last checkpoint"):
        worker.settle()
    del worker  # its thread may still read the gradients


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_wait_copies_the_active_rows_once_after_their_update(call_kernel: Callable[..., int], dtype: type):
    ours, rng = Segments(call_kernel), np.random.default_rng(0)
    worker, (grads, lists) = ours.registered(), drawn(rng, np.float32)
    active, fetched = np.array([0, 2, 5, ROWS], np.int32), [np.full((4, width), 7, dtype) for width in WIDTHS]
    lists[0][:], lists[1][:] = active[:3], np.arange(ACTIVE + 1)
    before = ours.bytes()

    def register(rows: np.ndarray) -> None:
        arrays = ours.w[0], ours.m[0], ours.v[0], ours.step[0], ours.decay.tolist()
        worker.register(0, *arrays, rows, fetched)

    register(active)
    assert not ours.start(at(worker, 0), grads, lists, hyper_of("clean"))
    assert not ours.wait(at(worker, 0))
    assert ours.bytes() != before
    for copy, weights in zip(fetched, ours.w[0], strict=True):
        np.testing.assert_array_equal(copy, np.concatenate([weights[active[:3]], 0 * weights[:1]]).astype(dtype))
        copy[...] = 7
    assert not ours.wait(at(worker, 0))
    assert all((copy == 7).all() for copy in fetched), "copied by the first wait alone"
    register(np.array([0, 1, 2, ROWS + 1], np.int32))
    assert ours.wait(at(worker, 0)) == 4
    assert all((copy == 7).all() for copy in fetched)


def test_a_worker_ends_with_its_object_and_its_number_names_no_other(call_kernel: Callable[..., int]):
    """Also in the middle of an update. A graph that is left over finds no worker, and not the next one."""
    ours, rng = Segments(call_kernel), np.random.default_rng(0)
    worker = ours.registered()
    gone, parts = at(worker, 0), drawn(rng, np.float32)
    assert not ours.start(gone, *parts, hyper_of("clean"))
    del worker
    gc.collect()
    before, other = ours.bytes(), ours.registered()
    assert at(other, 0)[0] == gone[0] + 1
    assert ours.start(gone, *parts, hyper_of("clean")) == ours.wait(gone) == 5
    other.settle()
    assert ours.bytes() == before


def test_spans_have_the_clock_of_python(call_kernel: Callable[..., int]):
    ours, rng = Segments(call_kernel), np.random.default_rng(0)
    worker, started = ours.registered(), time.perf_counter()
    parts = drawn(rng, np.float32)
    parts[1][1][:] = np.arange(ACTIVE + 1)
    assert not ours.start(at(worker, 1), *parts, hyper_of("clean"))
    worker.settle()
    times, [span] = worker.read()
    assert started < span.begin < span.end < time.perf_counter()
    assert (span.segment, times.busy, times.waited) == (1, span.end - span.begin, 0.0)
    assert not ours.wait(at(worker, 1))
    times, spans = worker.read()
    assert times.busy == 0.0 < times.waited and spans == []
