"""The heartbeat of a rank: a file in which it says what it is about to do, so that the launcher can tell a rank that hangs.

Ranks wait for each other in collectives, so when one hangs all of them stand still. The one that has said the fewest things is the
one that the others wait for. Asked by a signal, every rank shows its stack: Python writes it even while its main thread is inside
a graph.
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

VARIABLE = "PANGU_SIGMA_HEARTBEATS"
"""Environment variable with the folder of the files, one a rank; without it nobody listens."""
SHOW_STACK = signal.SIGUSR2
"""The signal at which a rank writes the stacks of its threads on standard error, which is its log."""
_BYTES = 256
"""Length of the file: what is longer is cut, what is shorter filled up with spaces."""


class Heartbeat:
    """What a rank says of itself."""

    def __init__(self, rank: int):
        """rank: names the file. Does nothing in a process that no launcher started."""
        folder = os.environ.get(VARIABLE)
        self._file: IO[bytes] | None = None
        self._beats = 0
        if folder:
            with contextlib.suppress(OSError):
                self._file = open(_file(Path(folder), rank), "wb", buffering=0)  # noqa: SIM115 (open as long as the rank lives)
            faulthandler.register(SHOW_STACK, file=2, all_threads=True)  # sys.stderr may be no file

    def beat(self, doing: str) -> None:
        """Say what is done next, such as "step 12". A full disk is no reason to stop: then the launcher hears nothing.

        One call writes all of it over the beat before, so a rank that is stopped at any moment leaves a whole beat behind.
        """
        self._beats += 1
        if self._file:
            said = f"{self._beats} {time.time()} {doing}".encode()[:_BYTES].ljust(_BYTES)
            try:
                os.pwrite(self._file.fileno(), said, 0)
            except OSError:
                self._file = None


@dataclass(frozen=True)
class Beat:
    """The last beat of a rank: how many there were, when it was (seconds of the clock), and what the rank began to do."""

    number: int
    at: float
    doing: str


def last_beat(folder: Path, rank: int) -> Beat | None:
    """The last beat of a rank; None before the first."""
    try:
        number, at, doing = _file(folder, rank).read_text(encoding="utf-8", errors="replace").split(" ", 2)
        return Beat(int(number), float(at), doing.rstrip())
    except (OSError, ValueError):
        return None


def _file(folder: Path, rank: int) -> Path:
    return folder / f"heartbeat_{rank}"
