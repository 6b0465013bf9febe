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
        states = {rank: _process_state(pid) for rank, pid in pids.items()}
        _show_stacks(pids, states)
        return _hang_message(late, states, self._seconds)

    def stopped(self, pids: dict[int, int]) -> str | None:
        """Return a message if a signal has paused processes of ranks, else None. With a message, all ranks were asked to write
        their call stacks to their logs. pids: process ids by rank.

        Call it when another process has failed: MindSpore's scheduler ends 30 s after the last message of a paused rank, which may
        be before the limit of `hung` is over, and it names no rank.
        """
        states = {rank: _process_state(pid) for rank, pid in pids.items()}
        paused = {rank: last_beat(self._folder, rank) for rank in pids if states[rank] in _STOPPED}
        if not paused:
            return None
        _show_stacks(pids, states)
        return f"{_rank_texts(paused, states)}; the stack of each rank is in its log"


def _hang_message(late: dict[int, Beat], states: dict[int, str], seconds: float) -> str:
    """Return a message that names the ranks that others wait for: ranks whose process is stopped, or else those with the fewest
    beats. late: last beats of the ranks that exceed the limit. states: process states by rank. seconds: the limit."""
    fewest_beats = min(beat.number for beat in late.values())
    paused = [rank for rank in late if states[rank] in _STOPPED]
    culprits = paused or [rank for rank, beat in late.items() if beat.number == fewest_beats]
    culprits_text = _rank_texts({rank: late[rank] for rank in culprits}, states)
    text = f"no progress for {seconds:g} s ({argument('--hang-timeout')}): {culprits_text}"
    if waiting := len(late) - len(culprits):
        ranks = "rank of this node waits" if waiting == 1 else "ranks of this node wait"
        text += f"; {waiting} other {ranks}"
    return f"{text}; the stack of each rank is in its log"


def _rank_texts(beats: Mapping[int, Beat | None], states: dict[int, str]) -> str:
    """Return a text that names each rank with its activity at its last beat, and says if its process is stopped."""
    return ", ".join(
        f"rank {rank} in {beat.doing if beat else 'its start'}{' (its process is stopped)' if states[rank] in _STOPPED else ''}"
        for rank, beat in beats.items()
    )


def _process_state(pid: int) -> str:
    """Return the state letter of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _show_stacks(pids: dict[int, int], states: dict[int, str]) -> None:
    """Ask every rank to write its stacks, and wait until they have. A stopped process is continued first; the launch ends
    anyway."""
    for rank, pid in pids.items():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, STACK_SIGNAL)
            if states[rank] in _STOPPED:
                os.kill(pid, signal.SIGCONT)
    time.sleep(_STACK_SECONDS)
