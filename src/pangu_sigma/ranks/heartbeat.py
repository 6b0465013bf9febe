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

from pangu_sigma.errors import argument

HEARTBEATS_VARIABLE = "PANGU_SIGMA_HEARTBEATS"
"""Environment variable with the folder of the heartbeat files, one a rank; without it none are written."""
_STACK_SIGNAL = signal.SIGUSR2
"""Signal at which a rank writes the stacks of its threads to standard error, which is its log."""
_STACK_SECONDS = 2.0
"""Seconds that ranks get to write their stacks."""
_LOOK_SECONDS = 1.0
"""Seconds between two reads of the heartbeat files, which may be on a slow disk."""
_BYTES = 256
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
            faulthandler.register(_STACK_SIGNAL, file=2, all_threads=True)  # sys.stderr may be no file

    def beat(self, doing: str) -> None:
        """Write what the rank does next, such as "step 12". If the disk is full, the rank continues without heartbeats.

        One write replaces the previous beat, so a rank that is stopped at any moment leaves a complete beat.
        """
        self._beats += 1
        if self._file:
            beat = f"{self._beats} {time.monotonic()} {doing}".encode()[:_BYTES].ljust(_BYTES)
            try:
                os.pwrite(self._file.fileno(), beat, 0)
            except OSError:
                self._file = None


@dataclass(frozen=True)
class Beat:
    """Content of a rank's heartbeat file. number: writes so far. at: `time.monotonic()` of the last, which all processes of a
    machine share and no setting of the clock changes. doing: activity begun then."""

    number: int
    at: float
    doing: str


def last_beat(folder: Path, rank: int) -> Beat | None:
    """Read the last beat of a rank from its heartbeat file in `folder`. Returns None before the first beat."""
    try:
        number, at, doing = _file(folder, rank).read_text(encoding="utf-8", errors="replace").split(" ", 2)
        return Beat(int(number), float(at), doing.rstrip())
    except (OSError, ValueError):
        return None


class Watchdog:
    """Reader of the heartbeats of a node's ranks, in the launcher. pids: process ids of ranks, by rank."""

    def __init__(self, folder: Path, seconds: float):
        """folder: folder of the heartbeat files. seconds: limit for one activity of a rank, such as a step; 0: no limit."""
        self._folder, self._seconds = folder, seconds
        self._next_look = 0.0

    def hung(self, pids: dict[int, int]) -> str | None:
        """Return a message that names the ranks that others wait for, if ranks are over the limit, else None.

        A rank is watched from its first heartbeat on: imports do not hang.
        """
        now = time.monotonic()
        if not self._seconds or now < self._next_look:
            return None
        self._next_look = now + _LOOK_SECONDS
        beats = {rank: beat for rank in pids if (beat := last_beat(self._folder, rank))}
        late = {rank: beat for rank, beat in beats.items() if now - beat.at > self._seconds}
        if not late:
            return None
        fewest = min(beat.number for beat in late.values())
        behind = [f"rank {rank} in {beat.doing}" for rank, beat in late.items() if beat.number == fewest]
        named = self.stopped(pids) or ", ".join(behind)
        limit = f"no progress for {self._seconds:g} s ({argument('--hang-timeout')})"
        return f"{limit}: {named}; late on this node: {len(late)} of {len(pids)} ranks; the stack of each is in its log"

    def stopped(self, pids: dict[int, int]) -> str:
        """Return text that names the ranks whose processes a signal or a debugger has stopped; empty if none is."""
        ranks = [rank for rank, pid in pids.items() if _state(pid) in ("T", "t")]
        beats = {rank: last_beat(self._folder, rank) for rank in ranks}
        return ", ".join(
            f"rank {rank} in {beat.doing if beat else 'its start'} (its process is stopped)"
            for rank, beat in beats.items()
        )


def write_stacks(pids: dict[int, int]) -> None:
    """Make every rank write its stacks to its log. A stopped rank is continued for it: ranks are killed afterwards."""
    for pid in pids.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, _STACK_SIGNAL)
            os.kill(pid, signal.SIGCONT)
    time.sleep(_STACK_SECONDS)


def _state(pid: int) -> str:
    """Return the state letter of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _file(folder: Path, rank: int) -> Path:
    return folder / f"heartbeat_{rank}"
