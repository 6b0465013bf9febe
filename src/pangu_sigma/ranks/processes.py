"""Processes of one node: start the ranks, see how they end, and end them with all that they started.

The variables that MindSpore documents for its communication make a process a rank or the scheduler; no launcher of its own is
needed. (`msrun` notices a dead rank after half a minute, and leaves its ranks running when it is stopped itself.)

Two requests to Linux leave nothing behind. Every process asks to be killed when the launcher ends, which survives exec and needs no
Python. And the launcher is a *child subreaper*: what a rank started becomes the launcher's child when the rank ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pangu_sigma.errors import UserError

logger = logging.getLogger(__name__)

SCHEDULER = "scheduler"
SCHEDULER_COMMAND = [sys.executable, "-c", "from mindspore.communication import init; init()"]
"""Command of the scheduler. It sends ranks each other's addresses and does not train, so it needs no code of this package."""

_LIBC = ctypes.CDLL(
    None, use_errno=True
)  # loaded here: between fork and exec another thread may hold the loader's lock
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_KILL_SECONDS = 30.0
"""Seconds to wait after SIGKILL. A process ends at once, unless it waits for a disk or a device that does not answer."""
_LAST_LINES, _LAST_BYTES = 20, 1 << 16


class LaunchError(UserError, RuntimeError):
    """Error of a launch; the message names the fault, the node and the fix."""


@dataclass(frozen=True)
class FailedProcess:
    """Failed process of a launch.

    name: `rank 3` or `scheduler`.
    status: exit status, or minus the number of the signal that killed it.
    """

    name: str
    status: int

    def __str__(self) -> str:
        if self.status >= 0:
            return f"{self.name} ended with status {self.status}"
        return f"{self.name} was killed by {signal.Signals(-self.status).name}"


class Processes:
    """Ranks of this node, on node 0 also the scheduler. A context manager, which kills those that remain."""

    def __init__(
        self, command: list[str], environment: dict[str, str], logs: Path, ranks: range, bind_cores: bool = False
    ):
        """Start them.

        command: command of every rank.
        environment: variables of all processes.
        logs: folder of a log for each process.
        ranks: numbers of this node's ranks.
        bind_cores: give each rank its share of the cores, in the order of devices.
        """
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._logs, self._environment = logs, environment
        self._processes: dict[str, subprocess.Popen] = {}
        cores = sorted(os.sched_getaffinity(0))
        share = len(cores) // len(ranks) if bind_cores else 0
        if ranks.start == 0:
            self._start(SCHEDULER, SCHEDULER_COMMAND, {"MS_ROLE": "MS_SCHED"}, [])
        for device, rank in enumerate(ranks):
            own_cores = cores[device * share : (device + 1) * share]
            self._start(f"rank {rank}", command, rank_variables(rank, device), own_cores)

    def _start(self, name: str, command: list[str], variables: dict[str, str], cores: list[int]) -> None:
        launcher = os.getpid()

        def prepare() -> None:
            end_with_parent(launcher)
            if cores:
                os.sched_setaffinity(0, cores)

        with open(self.log(name), "wb") as output:
            # In a session of its own: Ctrl-C at a terminal reaches the launcher alone, which decides what happens.
            self._processes[name] = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment | variables,
                start_new_session=True,
                preexec_fn=prepare,
            )

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def ranks(self) -> dict[int, int]:
        """Process ids of the ranks that have not ended, or whose end `failures` has not seen, by rank."""
        return {int(name.split()[1]): p.pid for name, p in self._processes.items() if name != SCHEDULER}

    def log(self, name: str) -> Path:
        """Return the path of the log file of a process: `rank 3` or `scheduler`."""
        return self._logs / f"{name.replace('rank ', 'worker_')}.log"

    def last_lines(self, name: str) -> str:
        """Return the last lines of a process's log. Each update of a progress bar is a line."""
        with open(self.log(name), "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-_LAST_LINES:])

    def failures(self) -> list[FailedProcess]:
        """Return the processes that failed since the last call."""
        ended = {name: status for name, p in self._processes.items() if (status := p.poll()) is not None}
        for name in ended:
            del self._processes[name]
        return [FailedProcess(name, status) for name, status in ended.items() if status != 0]

    def terminate(self) -> None:
        """Send SIGTERM to the ranks. The scheduler stays: ranks communicate through it while they save."""
        for name, process in self._processes.items():
            if name != SCHEDULER:
                process.terminate()

    def kill(self) -> None:
        """Kill all descendant processes, and wait until they are gone."""
        deadline = time.monotonic() + _KILL_SECONDS
        while children := list(children_of(os.getpid())):
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if time.monotonic() > deadline:
                logger.error("processes %s do not end even by SIGKILL: they wait for a device or a disk", children)
                return


def rank_variables(rank: object, device: object) -> dict[str, str]:
    """Return the environment variables that make a process the rank with this number, on this device of its node."""
    return {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": f"{rank}", "RANK_ID": f"{rank}", "DEVICE_ID": f"{device}"}


def end_with_parent(parent: int | None = None) -> None:
    """Ask Linux to kill this process when its parent ends. parent: process id of a parent that may have ended before this call."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent not in (None, os.getppid()):
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def children_of(parent: int) -> Iterator[int]:
    """Yield the process ids of a process's children. Reads all of /proc, as not every Linux has `/proc/<id>/task/<id>/children`."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            after_name = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            if int(after_name[1]) == parent:
                yield int(folder.name)
