"""The program that `msrun` starts in place of each rank: it waits, binds its lifetime to the launcher's, and becomes the rank.

Only the kernel can end a rank whose launcher was killed with SIGKILL. `msrun` stands between the two, so the order is:

1. `msrun` starts these programs, which wait at the gate (a file that the launcher has locked), and ends.
2. They become children of the launcher, their nearest ancestor that adopts orphans. It notes the rank of each and opens the gate.
3. They ask the kernel for SIGKILL when their parent dies, which survives the exec that follows, and exec the rank's command.

No thread and no process is needed to watch, so a rank that computes for minutes without letting Python run is ended as well.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
SCHEDULER_COMMAND = [sys.executable, "-c", "from mindspore.communication import init; init()"]
"""Command of the scheduler. It sends ranks each other's addresses and does not train, so it needs no code of this package."""


def main(arguments: list[str]) -> None:
    """Wait at the gate, then exec the rank's command. Raises SystemExit if the launcher has ended. arguments: path of the gate, a
    file with the launcher's process id that is locked until ranks may start; and the rank's command."""
    gate, *command = arguments
    with open(gate) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        launcher = int(file.read())
    end_with_parent()
    if os.getppid() != launcher:  # the launcher died before the kernel was asked
        raise SystemExit(f"launcher {launcher} is gone")
    if os.environ["MS_ROLE"] == "MS_SCHED":
        os.execv(SCHEDULER_COMMAND[0], SCHEDULER_COMMAND)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a shell may ignore it, and the launcher asks ranks to save by it
    os.execvp(command[0], command)


def end_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process. It works only on Linux, like MindSpore on Ascend."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


if __name__ == "__main__":
    main(sys.argv[1:])
