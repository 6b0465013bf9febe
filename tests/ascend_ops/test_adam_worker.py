"""The worker behind a step's back: the bytes of `AdamRows`, whatever it speculated and however it was told otherwise."""

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
CLEAN = {"lr": 1e-2, "grad_scale": 0.5, "apply": 1.0, "beta1": 0.8, "beta2": 0.95, "eps": 1e-20, "zero_grad": 0.0}
KINDS = {
    "clean": {},
    "clipped": {"grad_scale": 0.125},
    "overflow": {"apply": 0.0, "grad_scale": np.nan},
    "spike": {"apply": 0.0},
}


class Segments:
    """Two segments with state, updated by the worker or by `AdamRows`."""

    def __init__(self, call: Callable[..., int], moments: type = np.float32):
        rng = np.random.default_rng(0)
        self.call = call
        self.w = [[rng.normal(size=(ROWS, width)).astype(np.float32) for width in WIDTHS] for _ in range(2)]
        self.m, self.v = ([[np.zeros((ROWS, width), moments) for width in WIDTHS] for _ in range(2)] for _ in "mv")
        self.step = [np.zeros(ROWS, np.int32) for _ in range(2)]
        self.copies = [[np.zeros((ACTIVE, width), np.float32) for width in WIDTHS] for _ in range(2)]
        self.decay = np.array([0.1, 0.0], np.float32)

    def registered(self, **options: Any) -> AdamWorker:
        worker = AdamWorker(2, **options)
        for n in range(2):
            worker.register(n, self.w[n], self.m[n], self.v[n], self.step[n], self.decay.tolist())
        return worker

    def bytes(self) -> list[bytes]:
        arrays = [a for of in (self.w, self.m, self.v, self.copies) for arrays in of for a in arrays]
        return [array.tobytes() for array in [*arrays, *self.step]]

    def adam_rows(self, n: int, grads: list[np.ndarray], lists: list[np.ndarray], hyper: np.ndarray) -> None:
        active, offsets, entries = lists
        arrays = [*self.w[n], *self.m[n], *self.v[n], *grads, *self.copies[n]]
        assert not self.call(
            "AdamRowsCopied",
            *arrays,
            self.step[n],
            active,
            offsets,
            entries,
            hyper,
            self.decay,
            np.zeros(1, np.float32),
        )

    def hand_out(
        self, worker: AdamWorker, n: int, grads: list[np.ndarray], lists: list[np.ndarray], hyper: np.ndarray
    ) -> int:
        active, offsets, entries = lists
        return self.call(
            "HandOut",
            *grads,
            *self.copies[n],
            active,
            offsets,
            entries,
            hyper,
            worker.at(n).asnumpy(),
            np.zeros(1, np.float32),
        )

    def decide(self, worker: AdamWorker, hyper: np.ndarray) -> int:
        return self.call("Decide", hyper, worker.at(0).asnumpy(), np.zeros(1, np.float32))

    def wait(self, worker: AdamWorker, n: int) -> int:
        return self.call("Await", np.zeros(1, np.float32), worker.at(n).asnumpy(), np.zeros(1, np.float32))


def hyper_of(kind: str) -> np.ndarray:
    values = CLEAN | KINDS[kind]
    return np.array([values[name] for name in HYPER], np.float32)


def drawn(rng: np.random.Generator, dtype: type) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Gradients of a segment, one of them now and then not a number; and which rows, with how many tokens, are copied where."""
    grads = [rng.normal(size=(ACTIVE, width)).astype(dtype) for width in WIDTHS]
    offsets = np.cumsum([0, *rng.integers(0, 3, ACTIVE)]).astype(np.int32)
    entries = np.where(rng.random(ACTIVE) < 0.5, rng.permutation(ACTIVE), -1).astype(np.int32)
    return grads, [np.sort(rng.permutation(ROWS)[:ACTIVE]).astype(np.int32), offsets, entries]


@pytest.mark.parametrize(
    ("options", "moments", "dtype"),
    [
        ({"log_bytes": 1 << 20}, np.float32, np.float32),
        ({"log_bytes": 0}, np.float32, np.float32),
        ({"log_bytes": 70_000}, np.float32, np.float16),
        ({"log_bytes": 1 << 20, "threads": 2}, np.uint16, np.float32),
        ({"log_bytes": 1 << 20, "copies_gradients": True}, np.float32, np.float32),
    ],
    ids=[
        "room for all",
        "never speculates",
        "room for some, float16",
        "two threads, bfloat16 moments",
        "own gradients",
    ],
)
@pytest.mark.parametrize("sequences", [5, pytest.param(40, marks=pytest.mark.slow)])  # 200 in all
def test_random_sequences_of_clipped_overflowed_spiked_and_clean_steps_give_the_bytes_of_adam_rows(
    call_kernel: Callable[..., int], options: dict[str, Any], moments: type, dtype: type, sequences: int
):
    begun = 0
    for seed in range(sequences):
        rng = np.random.default_rng(seed)
        ours, theirs = (Segments(call_kernel, moments) for _ in range(2))
        worker, held = ours.registered(**options), []
        for _ in range(6):
            kind = rng.choice(list(KINDS), p=[0.4, 0.3, 0.15, 0.15])
            parts = [drawn(rng, dtype) for _ in range(2)]
            held.append(parts)  # gradients stay where they are until they are awaited
            if kind == "overflow":
                parts[0][0][0][0, 0] = np.nan
            for n in (1, 0):
                assert not ours.wait(worker, n)
                assert not ours.hand_out(worker, n, *parts[n], hyper_of("clean"))
                if options.get("copies_gradients"):
                    theirs_now = [grad.copy() for grad in parts[n][0]]
                    for grad in parts[n][0]:
                        grad[...] = 0.0
                    parts[n][0][:] = theirs_now
            if rng.random() < 0.5:
                np.linalg.norm(rng.normal(size=(60, 60)), 2)  # some time for the worker, or none
            assert not ours.decide(worker, hyper_of(kind))
            for n in range(2):
                theirs.adam_rows(n, *parts[n], hyper_of(kind))
        worker.settle()
        assert ours.bytes() == theirs.bytes(), seed
        counts, _ = worker.read()
        begun += counts.kept + counts.redone + counts.dropped
        assert counts.kept + counts.redone + counts.dropped + counts.late == 12
    assert (begun > 0) == (options["log_bytes"] > 0)


def test_after_three_clipped_steps_the_worker_waits_and_after_a_clean_one_it_speculates_again(
    call_kernel: Callable[..., int],
):
    ours = Segments(call_kernel)
    worker, rng = ours.registered(log_bytes=1 << 20), np.random.default_rng(0)

    def take(kind: str) -> bool:
        """True if the update was begun before the decision."""
        assert not ours.wait(worker, 0) and not ours.hand_out(worker, 0, *drawn(rng, np.float32), hyper_of("clean"))
        while worker_may_speculate and not worker.read()[1]:
            pass
        assert not ours.decide(worker, hyper_of(kind))
        worker.settle()
        return worker.read()[0].late == 0

    for kind, worker_may_speculate in (
        *(("clipped", True),) * 3,
        *(("clipped", False),) * 2,
        ("clean", False),
        ("clipped", True),
    ):
        assert take(kind) == worker_may_speculate


def test_an_update_is_handed_out_once_of_known_arrays_and_rows(call_kernel: Callable[..., int]):
    ours, rng = Segments(call_kernel), np.random.default_rng(0)
    worker, (grads, lists) = ours.registered(log_bytes=0), drawn(rng, np.float32)
    assert ours.hand_out(AdamWorker(2, 0), 0, grads, lists, hyper_of("clean")) == 5, "no arrays"
    lists[1][:] = np.arange(ACTIVE + 1)
    before = ours.bytes()
    assert ours.hand_out(worker, 0, grads, [np.array([0, 1, ROWS], np.int32), *lists[1:]], hyper_of("clean")) == 4
    assert ours.bytes() == before
    assert ours.hand_out(worker, 0, grads, lists, hyper_of("clean")) == 0
    assert ours.hand_out(worker, 0, grads, lists, hyper_of("clean")) == 9, "not awaited"
    assert ours.decide(worker, hyper_of("clean")) == 0 and ours.wait(worker, 0) == 0
    assert ours.bytes() != before


def test_a_failed_worker_fails_every_operator_and_every_wait(call_kernel: Callable[..., int]):
    ours, rng = Segments(call_kernel), np.random.default_rng(0)
    worker = ours.registered(log_bytes=0)
    grads, lists = drawn(rng, np.float32)
    assert not ours.hand_out(worker, 0, grads, lists, hyper_of("clean"))
    worker.fail()
    assert ours.decide(worker, hyper_of("clean")) == 8
    assert ours.wait(worker, 0) == 8 and ours.hand_out(worker, 1, grads, lists, hyper_of("clean")) == 8
    with pytest.raises(AdamWorkerError, match="go on from the last checkpoint"):
        worker.settle()


def test_a_worker_ends_with_its_object_also_in_the_middle_of_a_step(call_kernel: Callable[..., int]):
    ours, rng = Segments(call_kernel), np.random.default_rng(0)
    worker = ours.registered(log_bytes=1 << 20)
    assert not ours.hand_out(worker, 0, *drawn(rng, np.float32), hyper_of("clean"))
    del worker
    gc.collect()


def test_stretches_of_work_have_the_clock_of_python_and_their_kind(call_kernel: Callable[..., int]):
    ours, rng = Segments(call_kernel), np.random.default_rng(0)
    worker, started = ours.registered(log_bytes=0), time.perf_counter()
    parts = drawn(rng, np.float32)
    parts[1][1][:] = np.arange(ACTIVE + 1)
    assert not ours.hand_out(worker, 0, *parts, hyper_of("clean")) and not ours.decide(worker, hyper_of("clean"))
    worker.settle()
    counts, [span] = worker.read()
    assert started < span.begin < span.end < time.perf_counter()
    assert (span.segment, span.kind, counts.late) == (0, "direct", 1)
    assert worker.read() == (type(counts)(*[0] * len(counts)), [])
