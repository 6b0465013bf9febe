"""Timeline of a few training steps, `profile/trace.json` in the run folder, for https://ui.perfetto.dev or chrome://tracing.

It has spans of the training loop (feed, step, metrics, evaluation, save), and of the worker that updates experts behind the
step (`ecss.update`). The first step, which compiles, is not in it. MindSpore's profiler writes operators to files of its own beside
it, `*_ascend_ms/ASCEND_PROFILER_OUTPUT/trace_view.json`, for MindStudio Insight or Perfetto. Times in both are microseconds since
1970.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
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
_ROWS = ("training loop", "worker that updates experts")
"""Rows of the timeline by number: threads of the trace."""


def profiler_activities(target: str) -> list[ProfilerActivity]:
    """Return the activities that MindSpore's profiler records on a device target."""
    return [ProfilerActivity.CPU, *([ProfilerActivity.NPU] if target == "Ascend" else [])]


class Timeline(AbstractContextManager["Timeline"]):
    """Profiler timeline of a few steps after this process's first. It is a context manager, so that it ends with a shorter run."""

    def __init__(self, run: Path | None = None, start: int = 0):
        """run: run folder; None to write nothing. start: number of steps that the run has already taken."""
        self._run, self._start = run, start
        self._events: list[dict[str, Any]] = []
        self._profiler: Any = None
        self._start_time = math.inf  # of the timeline, in seconds since 1970; infinity unless the profiler runs

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._run and not self._events:
            logger.warning("no timeline: this run took no step after its first, which compiles")

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Record the time of a `with` block under a name, such as "save"."""
        begin = time.time()
        yield
        self._add(0, name, begin, time.time() - begin)

    def add_worker_spans(self, spans: Sequence[Span]) -> None:
        """Record stretches of the worker that updates experts. Spans have the clock of `time.perf_counter`."""
        clock_offset = time.time() - time.perf_counter()
        for span in spans:
            self._add(1, f"segment {span.segment}", clock_offset + span.begin, span.end - span.begin)

    def _add(self, row: int, name: str, begin: float, seconds: float) -> None:
        """Add a stretch of time to a row (see _ROWS), unless it began before the timeline. begin: in seconds since 1970."""
        if begin >= self._start_time:
            times = {"ts": 1e6 * begin, "dur": 1e6 * seconds}
            self._events.append({"ph": "X", "name": name, "pid": 1, "tid": row, **times})

    def step_done(self, step: int) -> None:
        """Start the timeline after the first step of this process, and end it STEPS later. Call this method after each step, with
        its evaluation and checkpoint. step: number of the step."""
        if self._run and step == self._start + 1:
            folder = self._run / FOLDER
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            activities = profiler_activities(ms.get_context("device_target"))
            self._profiler = profile(activities=activities, on_trace_ready=tensorboard_trace_handler(str(folder)))
            self._profiler.start()
            self._start_time = time.time()
        elif step == self._start + 1 + STEPS:
            self._end()

    def _end(self) -> None:
        """Stop the profiler, and write the trace, once."""
        if self._run is None or self._profiler is None:
            return
        self._profiler.stop()
        self._profiler, self._start_time = None, math.inf
        if not self._events:  # the run ended with its first step
            shutil.rmtree(self._run / FOLDER)
            return
        file, name = self._run / FOLDER / TRACE, {"ph": "M", "name": "thread_name", "pid": 1}
        rows = [{**name, "tid": number, "args": {"name": row}} for number, row in enumerate(_ROWS)]
        write_atomically(file, json.dumps([*rows, *self._events]).encode())
        logger.info("timeline of %d steps: %s; open it in https://ui.perfetto.dev", STEPS, file)
