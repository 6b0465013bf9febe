"""Heartbeat of a rank: a file with its current activity, by which the launcher detects a rank that hangs.

Ranks wait for each other in collectives, so when one hangs all of them stop. The rank with the fewest beats is the one that the
others wait for. At a signal every rank prints its stacks: Python does so even while its main thread is inside a graph.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

HEARTBEATS_VARIABLE = "PANGU_SIGMA_HEARTBEATS"
"""Environment variable with the folder of the heartbeat files, one a rank; without it none are written."""
STACK_SIGNAL = signal.SIGUSR2
"""Signal at which a rank writes the stacks of its threads to standard error, which is its log."""
_BEAT_BYTES = 256
"""Size of the file: longer beats are cut, shorter ones padded with spaces."""


class Heartbeat:
    """Writer of a rank's heartbeat file."""

    def __init__(self, rank: int):
        """rank: number in the name of the file. Without the launcher's environment variable, nothing is written."""
        folder = os.environ.get(HEARTBEATS_VARIABLE)
        self._file: IO[bytes] | None = None
        self._beats = 0
        if folder:
            with contextlib.suppress(OSError):
                self._file = open(_file(Path(folder), rank), "wb", buffering=0)  # noqa: SIM115 (open as long as the rank lives)
            faulthandler.register(STACK_SIGNAL, file=2, all_threads=True)  # sys.stderr may be no file

    def beat(self, activity: str) -> None:
        """Write the next activity of the rank, such as "step 12". If the disk is full, the rank continues without heartbeats. One
        write replaces the previous beat, so a rank that is stopped at any moment leaves a complete beat."""
        self._beats += 1
        if self._file:
            beat = f"{self._beats} {time.monotonic()} {activity}".encode()[:_BEAT_BYTES].ljust(_BEAT_BYTES)
            try:
                os.pwrite(self._file.fileno(), beat, 0)
            except OSError:
                self._file = None


@dataclass(frozen=True)
class Beat:
    """Content of a rank's heartbeat file. number: number of beats so far. at: `time.monotonic()` of the last beat; all processes
    of a machine share this clock. activity: activity of the rank since then."""

    number: int
    at: float
    activity: str


def last_beat(folder: Path, rank: int) -> Beat | None:
    """Read the last beat of a rank from its heartbeat file in `folder`. Returns None before the first beat."""
    try:
        number, at, activity = _file(folder, rank).read_text(encoding="utf-8", errors="replace").split(" ", 2)
        return Beat(int(number), float(at), activity.rstrip())
    except (OSError, ValueError):
        return None


def _file(folder: Path, rank: int) -> Path:
    return folder / f"heartbeat_{rank}"
