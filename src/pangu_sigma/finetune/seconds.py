"""Seconds that the phases of a fine-tuning take: each moment counts to one phase, the innermost that was entered."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Seconds:
    """Stopwatch of the phases of one process. It begins with "start", to which all that has no phase of its own counts."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = defaultdict(float)
        self._phase, self._since = "start", time.perf_counter()

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """Count the time of a `with` statement to a phase."""
        outer = self._enter(phase)
        try:
            yield
        finally:
            self._enter(outer)

    def figures(self) -> dict[str, float]:
        """Return the seconds of each phase so far, in the order in which they first ended or were interrupted."""
        self._enter(self._phase)
        return {phase: round(seconds, 1) for phase, seconds in self._spent.items()}

    def _enter(self, phase: str) -> str:
        """Begin a phase, and return the one before."""
        now, outer = time.perf_counter(), self._phase
        self._spent[outer] += now - self._since
        self._phase, self._since = phase, now
        return outer
