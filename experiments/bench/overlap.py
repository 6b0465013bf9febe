"""Bench of the update hidden behind the step (`ecss.update`): the device's work on one core, the host's on another, on all sides.

Peers: the same step whose host and device take turns, and the step that fetches and updates all experts, with turns, too. The
device's work X is the graph with nothing beside it: forward and backward pass, head, norm and the Adam of the dense parameters. The
host's work is the Adam of the active experts, or Y, fetching and updating all. Side by side they slow each other, which is measured
with a worker that updates without end.

The bound is the step of a schedule without any loss, at these slowed rates: the whole update is hidden behind the graph.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from ascend_ops.adam import HYPER
from ascend_ops.adam_worker import AdamWorker
from ascend_ops.library import cpu_library
from experiments.bench.ecss import DOMAINS, PAPER_RATIO, Lab, _Offloaded
from experiments.bench.harness import Row, compare, figure, take_turns
from experiments.bench.synthetic import SharedTier, SyntheticRun, config_of
from pangu_sigma.config import Config
from pangu_sigma.ecss.store import HostStore
from pangu_sigma.process import use_cpu

MODEL = {"hidden": 256, "ffn": 2048, "heads": 4, "dense_layers": 4, "rre_layers": 1, "experts_per_domain": 48}
HEAD = 512
STEP_TOKENS = (64, 256)
"""Tokens of a step: few, so that the host has a quarter of the work of the device, which then streams weights and is slowed by the
worker that does so, too; and more, so that products bind the device."""
STEPS, ROUNDS = 10, 5
"""Number of steps of a contender in a row, so that its updates are hidden behind its own steps; and of rounds."""


def run(peers: bool) -> list[Row]:
    """Rows of the bench, a process for each case."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("bench overlap needs two cores, one for the device and one for the host")
    rows: list[Row] = []
    for tokens in STEP_TOKENS:
        os.sched_setaffinity(0, cores[:1])  # before the process begins: OpenMP counts its cores when it is loaded
        try:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                rows += process.submit(overlapped, tokens, cores[1]).result()
        finally:
            os.sched_setaffinity(0, cores)
    return rows


def overlapped(tokens: int, core: int) -> list[Row]:
    """Rows of the case `paper overlapped` with so many tokens a step. core: the worker's."""
    use_cpu()
    lab = OverlapLab(tokens, core)
    case = (
        f"paper overlapped: 4 dense + 1 RRE layer of {MODEL['hidden']} x {MODEL['ffn']}, "
        f"{MODEL['experts_per_domain']} experts a domain, 1 of {DOMAINS} domains active, {tokens} tokens, head of {HEAD} rows, "
        "X has the dense Adam"
    )
    turns = lab.run()
    runs: dict[str, Callable[[], Any]] = {
        "ours": partial(_steps, lab.run()),
        "host and device take turns": partial(_steps, turns, turns=True),
        "all experts fetched and updated": partial(_steps, lab.offloaded_all(), turns=True),
    }
    rows = compare("overlap", case, _per_step(take_turns(runs, ROUNDS)))
    return rows + _bound(case, lab, turns, {row.peer: row for row in rows}, core)


def _bound(case: str, lab: OverlapLab, turns: SyntheticRun, rows: dict[str, Row], core: int) -> list[Row]:
    x, y = _measure(turns)
    updates = EndlessUpdates(core, lab.parameters // DOMAINS)
    updates.run(STEPS)
    undisturbed = updates.seconds()
    with updates:
        beside, _ = _measure(turns)
    slow_x, slow_y = beside / x, updates.seconds() / undisturbed
    bound = x + y * slow_y * (1 - 1 / slow_x)
    every = rows["all experts fetched and updated"]
    assert every.peer_value
    ms = partial(figure, "overlap", case)
    return [
        ms("device's work X, beside a busy worker", 1e3 * x, 1e3 * x * slow_x, "ms", lower=True),
        ms("update of the active experts, beside a busy graph", 1e3 * y, 1e3 * y * slow_y, "ms", lower=True),
        ms("host work Y of all : X, the paper's", every.peer_value / (1e3 * x) - 1, PAPER_RATIO, "x"),
        ms("bound of the step at these rates", every.ours, 1e3 * bound, "ms", lower=True),
        ms(
            "speed-up over all experts, the bound's",
            every.peer_value / every.ours,
            every.peer_value / (1e3 * bound),
            "x",
        ),
    ]


class EndlessUpdates:
    """Adam of as many weights as a step updates, again and again, in a thread on one core: a worker that is never done.

    It is the kernel of `AdamRows` on arrays of its own. A context manager: it updates as long as the `with` block runs.
    """

    def __init__(self, core: int, weights: int):
        self._core, self._seconds, self._stop = core, list[float](), threading.Event()
        hyper = dict.fromkeys(HYPER, 0.0) | {
            "lr": 1e-3,
            "grad_scale": 1.0,
            "apply": 1.0,
            "beta1": 0.9,
            "beta2": 0.95,
            "eps": 1e-8,
        }
        self._arrays = [np.full((1, weights), value, np.float32) for value in (1.0, 0.0, 1e-6, 1e-3)]
        self._arrays += [np.zeros(1, np.int32), np.zeros(1, np.int32), np.array([0, 1], np.int32)]
        self._arrays += [np.array(list(hyper.values()), np.float32), np.zeros(1, np.float32), np.zeros(1, np.float32)]
        self._thread: threading.Thread | None = None

    def run(self, times: int) -> None:
        """Update so often, in a thread."""
        self._begin(lambda: len(self._seconds) < times)
        self._end()

    def seconds(self) -> float:
        """The median of one update since the last call."""
        seconds, self._seconds = self._seconds, []
        return statistics.median(seconds)

    def __enter__(self) -> EndlessUpdates:
        self._stop.clear()
        self._begin(lambda: not self._stop.is_set())
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._end()

    def _begin(self, more: Callable[[], bool]) -> None:
        def work() -> None:
            os.sched_setaffinity(0, [self._core])
            while more():
                started = time.perf_counter()
                self._once()
                self._seconds.append(time.perf_counter() - started)

        self._thread = threading.Thread(target=work)
        self._thread.start()

    def _end(self) -> None:
        assert self._thread is not None
        self._thread.join()

    def _once(self) -> None:
        count, arrays = len(self._arrays), self._arrays
        shapes = [(ctypes.c_int64 * a.ndim)(*a.shape) for a in arrays]
        failed = ctypes.CDLL(cpu_library()).AdamRows(
            count,
            (ctypes.c_void_p * count)(*(a.ctypes.data for a in arrays)),
            (ctypes.c_int * count)(*(a.ndim for a in arrays)),
            (ctypes.c_void_p * count)(*map(ctypes.addressof, shapes)),
            (ctypes.c_char_p * count)(*(a.dtype.name.encode() for a in arrays)),
            None,
            None,
        )
        assert not failed


class OverlapLab(Lab):
    """One set of expert arrays, and steps over it whose host work is the worker's."""

    def __init__(self, tokens: int, core: int):
        """core: the worker's."""
        self._tokens, self._core = tokens, core
        super().__init__(MODEL, DOMAINS)
        for experts in self._store.segments:
            for array in [*experts.moments, *experts.variances]:
                array.asnumpy()[...] = 0.0  # so that all memory is there

    def run(self) -> SyntheticRun:
        """A run whose worker updates the active experts."""
        config = self._config(self._tokens)
        return self._with_worker(config, HostStore)

    def offloaded_all(self) -> SyntheticRun:
        """A run that fetches all experts in its graph, and whose worker updates all."""
        config = self._config(self._tokens, enabled=False)
        # not a configuration of the product, which would refuse it: a worker, and no separation
        config = config.model_copy(update={"ecss": config.ecss.model_copy(update={"update": "worker"})})
        return self._with_worker(config, _Offloaded)

    def _with_worker(self, config: Config, kind: type[HostStore]) -> SyntheticRun:
        """Make a run while this thread is on the worker's core, which the worker's thread inherits."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, [self._core])
        try:
            return SyntheticRun(config, kind(config, SharedTier(self._store)))
        finally:
            os.sched_setaffinity(0, before)

    def _config(self, tokens: int, enabled: bool = True, **ecss: Any) -> Config:
        model = MODEL | {"seq_length": tokens, "slot_rows": HEAD}
        who = "worker" if enabled else "auto"
        return config_of(DOMAINS, model, train={"batch_size": 1}, ecss={"enabled": enabled, "update": who, **ecss})


def _measure(run: SyntheticRun) -> tuple[float, float]:
    """Take steps one by one, and wait for each update. Returns seconds of the graph and of the worker: medians over steps."""
    seconds, busy = [], []
    for _ in range(2 * STEPS):
        run.store.settle()
        _worker(run).read()
        started = time.perf_counter()
        run.advance()
        seconds.append(time.perf_counter() - started)
        run.store.settle()
        busy.append(_worker(run).read()[0].busy)
    return statistics.median(seconds), statistics.median(busy)


def _per_step(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [each / STEPS for each in of] for name, of in seconds.items()}


def _worker(run: SyntheticRun) -> AdamWorker:
    assert run.store.worker is not None
    return run.store.worker


def _steps(run: SyntheticRun, turns: bool = False) -> None:
    """Take steps in a row. turns: True to wait for each update."""
    for _ in range(STEPS):
        run.advance()
        if turns:
            run.store.settle()
    run.store.settle()
