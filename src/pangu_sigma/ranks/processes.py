"""Processes of one node: start them with `msrun`, adopt them, watch them, and end them with all that they started.

The launcher is a *child subreaper*: a process whose parent ends becomes the launcher's child, not that of process 1. So `msrun`
only starts the ranks and ends (`--join=False`; if it stayed it would notice a dead rank after half a minute, and leave orphans),
and the kernel reports to the launcher how each of them ended.

The launcher may be a user's process (`ps.launch`) with children of its own, which are left alone. A variable that `msrun` gets, and
with it all that it starts, tells them apart; so what they start escapes the launcher only if it leaves its environment behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from pangu_sigma.errors import UserError
from pangu_sigma.ranks.worker import end_with_parent, prctl

logger = logging.getLogger(__name__)

SCHEDULER = "scheduler"

_MSRUN = "msrun"
_MARK = "PANGU_SIGMA_LAUNCH"
"""Environment variable of all processes of a launch."""
_PR_SET_CHILD_SUBREAPER = 36
_KILL_SECONDS = 30.0
"""Seconds to wait after SIGKILL. A process ends at once, unless it waits for a disk or a device that does not answer."""
_LAST_LINES, _LAST_BYTES = 20, 1 << 16


class LaunchError(UserError, RuntimeError):
    """Error of a launch; the message names the fault, the node and the fix."""


@dataclass(frozen=True)
class FailedProcess:
    """Failed process of a launch.

    name: `rank 3`, `scheduler` or `msrun`.
    status: exit status, or minus the number of the signal that killed it; None for a rank that was gone when msrun had started all.
    """

    name: str
    status: int | None

    def __str__(self) -> str:
        if self.status is None:
            return f"{self.name} ended before it was let start"
        if self.status >= 0:
            return f"{self.name} ended with status {self.status}"
        return f"{self.name} was killed by {signal.Signals(-self.status).name}"


class Processes(contextlib.AbstractContextManager["Processes"]):
    """Ranks and scheduler that MindSpore's `msrun` starts on this node. A context manager, which kills the remaining processes."""

    def __init__(self, command: list[str], environment: dict[str, str], gate: Path, logs: Path, ranks: range):
        """Start `command`, an msrun that starts worker.py for each of this node's `ranks`. gate: file to lock, at which the ranks
        wait until all are known. logs: folder of the log files. Raises LaunchError if the gate is locked or SIGCHLD ignored."""
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            raise LaunchError(
                "SIGCHLD is ignored, so Linux tells of no rank that ends; start this process with its default"
            )
        self._logs, self._ranks = logs, ranks
        self._gate = _lock_gate(gate)
        self._mark = f"{os.getpid()}.{time.monotonic_ns()}"
        prctl(_PR_SET_CHILD_SUBREAPER, 1)
        with open(self.log_path(_MSRUN), "wb") as output:
            # In a session of its own: Ctrl-C at a terminal reaches the launcher alone, which decides what happens.
            self._msrun = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment | {_MARK: self._mark},
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self._names = {self._msrun.pid: _MSRUN}

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._gate.close()

    @property
    def running_names(self) -> list[str]:
        """Names of the ranks that have not ended, and `msrun` until it has started all ranks."""
        return [name for name in self._names.values() if name != SCHEDULER]

    @property
    def ranks(self) -> dict[int, int]:
        """Process ids of the ranks that have not ended, by rank."""
        return {int(name.removeprefix("rank ")): pid for pid, name in self._names.items() if name.startswith("rank ")}

    def log_path(self, name: str) -> Path:
        """Return the path of the log file of a process: `rank 3`, `scheduler` or `msrun`. The name of msrun's log has the number of
        this node's first rank in it, because nodes may share the folder."""
        stem = f"{_MSRUN}_{self._ranks.start}" if name == _MSRUN else name.replace("rank ", "worker_")
        return self._logs / f"{stem}.log"

    def log_end(self, name: str) -> str:
        """Return the path and the last lines of a process's log as text. Each update of a progress bar is a line."""
        with open(self.log_path(name), "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        last_lines = [line for line in lines if line.strip()][-_LAST_LINES:]
        return "\n".join([f"the end of {self.log_path(name)}:", *last_lines])

    def failures(self) -> list[FailedProcess]:
        """Return the processes that failed since the last call. Once msrun has ended well, adopt the ranks that it has started;
        ranks that are gone by then have failed too."""
        failures = []
        for pid, status in self._exit_statuses(self._names).items():
            name = self._names.pop(pid)
            if status != 0:
                failures.append(FailedProcess(name, status))
            elif name == _MSRUN:
                failures += [FailedProcess(missing_rank, None) for missing_rank in self._adopt()]
        return failures

    def terminate(self) -> None:
        """Send SIGTERM to the ranks. The scheduler stays: ranks communicate through it while they save."""
        for pid, name in self._names.items():
            if name != SCHEDULER:
                os.kill(pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill all descendants of `msrun`, and wait until they are gone, or log an error after _KILL_SECONDS."""
        deadline, pids = time.monotonic() + _KILL_SECONDS, {*self._names}  # the pids to wait for
        children = self._children()
        while children or pids:
            for child, _ in children:
                # a process that this child started becomes a child of this process, and is killed in the next round
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
                pids.add(child.pid)
            time.sleep(0.01)
            pids -= self._exit_statuses(pids).keys()
            if time.monotonic() > deadline:
                logger.error("processes %s do not end even by SIGKILL: they wait for a device or a disk", sorted(pids))
                return
            children = self._children()

    def _children(self) -> list[tuple[psutil.Process, dict[str, str]]]:
        """Return the children of the launcher that descend from `msrun` and have not ended, each with its environment."""
        children = []
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):  # the child has ended
                environment = child.environ()
                if environment.get(_MARK) == self._mark:
                    children.append((child, environment))
        return children

    def _exit_statuses(self, pids: Collection[int]) -> dict[int, int]:
        """Return the exit status of each child among `pids` that has ended, by its process id. The kernel forgets it then."""
        statuses = {}
        for pid in pids:
            ended_pid, wait_status = os.waitpid(pid, os.WNOHANG)  # of -1 it would take the status of a user's process
            if ended_pid != 0:
                statuses[pid] = os.waitstatus_to_exitcode(wait_status)
                if pid == self._msrun.pid:
                    self._msrun.returncode = statuses[pid]  # `Popen` cannot ask for it again
        return statuses

    def _adopt(self) -> list[str]:
        """Find the process of each rank and of the scheduler by the environment that msrun gave them, and open the gate, so that
        the ranks start. Returns the names of missing ranks."""
        for child, variables in self._children():
            role = variables.get("MS_ROLE")
            if role == "MS_WORKER":
                self._names[child.pid] = f"rank {variables['MS_NODE_ID']}"
            elif role == "MS_SCHED" and self._ranks.start == 0:
                self._names[child.pid] = SCHEDULER
            elif role == "MS_SCHED":
                # msrun starts a scheduler on each node with the master's address; "nodes" that share a machine need only one
                child.kill()
                os.waitpid(child.pid, 0)
        fcntl.flock(self._gate, fcntl.LOCK_UN)
        return sorted({f"rank {rank}" for rank in self._ranks} - set(self._names.values()))


def _lock_gate(gate: Path) -> IO[str]:
    """Create and lock the gate, a file that holds this process's id, and return the open file. `ranks/worker.py` waits until this
    process unlocks it or ends. Raises LaunchError if another launch has locked it."""
    gate.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = open(gate, "a")  # noqa: SIM115 (closed by Processes)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise LaunchError(f"another launch is starting here with the same port ({gate} is locked)") from None
    gate.write_text(str(os.getpid()))
    return file
