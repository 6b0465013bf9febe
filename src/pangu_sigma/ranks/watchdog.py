"""Watchdog of a node: detects ranks that hang, and names those that the others wait for."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from pangu_sigma.errors import argument
from pangu_sigma.ranks.heartbeat import STACK_SIGNAL, Beat, last_beat

_LOOK_SECONDS = 1.0
"""Seconds between two reads of the heartbeat files, which may be on a slow disk."""
_STACK_SECONDS = 2.0
"""Seconds that ranks get to write their stacks."""
_STOPPED = ("T", "t")
"""Process states in /proc of a process that a signal or a debugger has stopped."""


class Watchdog:
    """Watchdog of a node's ranks. It reads their heartbeats: files in which each rank notes its current activity."""

    def __init__(self, folder: Path, seconds: float):
        """folder: folder of the heartbeat files. seconds: limit for one activity of a rank, such as a step; 0: no limit."""
        self._folder, self._seconds = folder, seconds
        self._next_look = 0.0

    def hung(self, pids: dict[int, int]) -> str | None:
        """Return a message if ranks hang, else None. With a message, all ranks were asked to write their call stacks to their logs.

        pids: process ids of this node's ranks, by rank. A rank is watched from its first heartbeat on: imports do not hang.
        """
        now = time.monotonic()
        if not self._seconds or now < self._next_look:
            return None
        self._next_look = now + _LOOK_SECONDS
        beats = {rank: beat for rank in pids if (beat := last_beat(self._folder, rank))}
        late = {rank: beat for rank, beat in beats.items() if now - beat.at > self._seconds}
        if not late:
            return None
        states = {rank: _state(pid) for rank, pid in pids.items()}
        _show_stacks(pids, states)
        return _explain(late, states, self._seconds)

    def stopped(self, pids: dict[int, int]) -> str | None:
        """Return a message if a signal has paused processes of ranks, else None. With a message, all ranks were asked to write
        their call stacks to their logs. pids: process ids by rank.

        Call it when another process has failed: MindSpore's scheduler ends 30 s after the last message of a paused rank, which may
        be before the limit of `hung` is over, and it names no rank.
        """
        states = {rank: _state(pid) for rank, pid in pids.items()}
        stopped = {rank: last_beat(self._folder, rank) for rank in pids if states[rank] in _STOPPED}
        if not stopped:
            return None
        _show_stacks(pids, states)
        return f"{_named(stopped, states)}; the stack of each rank is in its log"


def _explain(late: dict[int, Beat], states: dict[int, str], seconds: float) -> str:
    """Return a message that names the ranks that others wait for: those that are stopped, or else those that are behind."""
    fewest = min(beat.number for beat in late.values())
    stopped = [rank for rank in late if states[rank] in _STOPPED]
    behind = stopped or [rank for rank, beat in late.items() if beat.number == fewest]
    named = _named({rank: late[rank] for rank in behind}, states)
    others = len(late) - len(behind)
    waiting = (
        f"; {others} other rank{'s' if others > 1 else ''} of this node wait{'s' if others == 1 else ''}"
        if others
        else ""
    )
    return f"no progress for {seconds:g} s ({argument('--hang-timeout')}): {named}{waiting}; the stack of each rank is in its log"


def _named(beats: Mapping[int, Beat | None], states: dict[int, str]) -> str:
    """Return text with each rank, its activity by its last heartbeat, and whether it is stopped."""
    return ", ".join(
        f"rank {rank} in {beat.doing if beat else 'its start'}{' (its process is stopped)' if states[rank] in _STOPPED else ''}"
        for rank, beat in beats.items()
    )


def _state(pid: int) -> str:
    """Return the state letter of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _show_stacks(pids: dict[int, int], states: dict[int, str]) -> None:
    """Ask every rank for its stacks, and wait for them. A stopped rank is continued for it: it is killed afterwards."""
    for rank, pid in pids.items():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, STACK_SIGNAL)
            if states[rank] in _STOPPED:
                os.kill(pid, signal.SIGCONT)
    time.sleep(_STACK_SECONDS)
