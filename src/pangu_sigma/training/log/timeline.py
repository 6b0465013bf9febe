"""Timeline of a few training steps, `profile/trace.json` in the run folder, for https://ui.perfetto.dev or chrome://tracing.

It has spans of the training loop (feed, step, metrics, evaluation, save), and those of the worker that updates experts behind the
step (`ecss.update`). The first step, which compiles, is not in it. MindSpore's profiler writes operators to files of its own beside
it, `*_ascend_ms/ASCEND_PROFILER_OUTPUT/trace_view.json`, for MindStudio Insight or Perfetto. Times in both are microseconds since
1970.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore.profiler import ProfilerActivity, profile, tensorboard_trace_handler

from ascend_ops.adam_worker import Span
from pangu_sigma.sealed import write_atomically

logger = logging.getLogger(__name__)

FOLDER = "profile"
TRACE = "trace.json"
"""Folder of the profiler timeline in a run folder, and file in it."""
STEPS = 5
"""Number of training steps in a profiler timeline."""
_NO_STEP = "no timeline: this run took no step after its first, which compiles"
_LOOP_ROW = {"pid": 1, "tid": 0}
"""Process and thread id in the trace for the row of the loop."""
_WORKER_ROW = {"pid": 1, "tid": 1}
"""The same for the row of the worker."""


def profiler_activities(target: str) -> list[ProfilerActivity]:
    """Return the activities that MindSpore's profiler records on a device target."""
    return [ProfilerActivity.CPU, *([ProfilerActivity.NPU] if target == "Ascend" else [])]


class Timeline:
    """Profiler timeline of a few steps after this process's first. It is a context manager, so that it ends with a shorter run."""

    def __init__(self, run: Path | None = None, start: int = 0):
        """run: run folder; None to write nothing. start: number of steps that the run has already taken."""
        self._run, self._start = run, start
        self._events: list[dict[str, Any]] = []
        self._profiler: Any = None
        self._begun = 0

    def __enter__(self) -> Timeline:
        return self

    def __exit__(self, *_: object) -> None:
        if self._run and not self._begun:
            logger.warning(_NO_STEP)
        self._write()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Record the time of a `with` block under a name, such as "save"."""
        started = time.time_ns()
        try:
            yield
        finally:
            self._add(name, _LOOP_ROW, started, time.time_ns() - started)

    def worked(self, spans: Sequence[Span]) -> None:
        """Record stretches of the worker that updates experts."""
        since_1970 = time.time() - time.perf_counter()
        for span in spans:
            begin, seconds = 1e9 * (since_1970 + span.begin), span.end - span.begin
            self._add(f"segment {span.segment}", _WORKER_ROW, begin, 1e9 * seconds)

    def _add(self, name: str, row: dict[str, int], begin: float, nanoseconds: float) -> None:
        """Add a stretch of time, unless it began before the timeline."""
        if self._profiler is not None and begin >= self._begun:
            self._events.append({"ph": "X", "name": name, **row, "ts": begin / 1000, "dur": nanoseconds / 1000})

    def step_done(self, step: int) -> None:
        """Record that a step has ended, with its evaluation and checkpoint."""
        done = step - self._start
        if done == 1 and self._run:
            self._begin(self._run / FOLDER)
        elif done == 1 + STEPS:
            self._write()

    def _begin(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder = folder
        self._profiler = profile(
            activities=profiler_activities(ms.get_context("device_target")),
            on_trace_ready=tensorboard_trace_handler(str(folder)),
        )
        self._profiler.start()
        self._begun = time.time_ns()

    def _write(self) -> None:
        """Stop the profiler, and write the trace, once."""
        if self._profiler is None:
            return
        self._profiler.stop()
        self._profiler = None
        if not self._events:  # the run ended with its first step
            shutil.rmtree(self._folder)
            logger.warning(_NO_STEP)
            return
        named = {"ph": "M", "name": "process_name", **_LOOP_ROW, "args": {"name": "training loop"}}
        rows = ((_LOOP_ROW, "loop"), (_WORKER_ROW, "worker that updates experts"))
        threads = [{"ph": "M", "name": "thread_name", **row, "args": {"name": name}} for row, name in rows]
        write_atomically(self._folder / TRACE, json.dumps([named, *threads, *self._events]).encode())
        logger.info("timeline of %d steps: %s; open it in https://ui.perfetto.dev", STEPS, self._folder / TRACE)
