"""Watchdog of a node: detects ranks that hang, and names those that the others wait for."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from pangu_sigma.errors import argument
from pangu_sigma.ranks.heartbeat import STACK_SIGNAL, last_beat

_LOOK_SECONDS = 1.0
"""Seconds between two reads of the heartbeat files, which may be on a slow disk."""
_STACK_SECONDS = 2.0
"""Seconds that ranks get to write their stacks."""


class Watchdog:
    """Watchdog of a node's ranks. It reads their heartbeats: files in which each rank notes its current activity."""

    def __init__(self, folder: Path, seconds: float):
        """folder: folder of the heartbeat files. seconds: limit for one activity of a rank, such as a step; 0: no limit."""
        self._folder, self._seconds = folder, seconds
        self._next_look = 0.0

    def hang_message(self, pids: dict[int, int]) -> str | None:
        """Return a message if ranks hang, else None. The message names the ranks with the fewest beats: the others wait for them.
        Before a message is returned, all ranks are asked to write their call stacks to their logs. pids: process ids of this node's
        ranks, by rank. A rank is watched from its first heartbeat on: imports do not hang."""
        now = time.monotonic()
        if not self._seconds or now < self._next_look:
            return None
        self._next_look = now + _LOOK_SECONDS
        beats = {rank: last_beat(self._folder, rank) for rank in pids}
        late_beats = {rank: beat for rank, beat in beats.items() if beat and now - beat.at > self._seconds}
        if not late_beats:
            return None
        _show_stacks(pids.values())
        fewest = min(beat.number for beat in late_beats.values())
        culprits = [f"rank {rank} in {beat.activity}" for rank, beat in late_beats.items() if beat.number == fewest]
        waiting_count = len(late_beats) - len(culprits)
        waiting_text = f"; other ranks of this node that wait: {waiting_count}" if waiting_count else ""
        limit = f"no progress for {self._seconds:g} s ({argument('--hang-timeout')})"
        return f"{limit}: {', '.join(culprits)}{waiting_text}; the stack of each rank is in its log"


def _show_stacks(pids: Iterable[int]) -> None:
    """Ask every rank to write its stacks to its log, and give the ranks _STACK_SECONDS to do so."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, STACK_SIGNAL)
            os.kill(pid, signal.SIGCONT)  # a process that a signal has paused could not write
    time.sleep(_STACK_SECONDS)
