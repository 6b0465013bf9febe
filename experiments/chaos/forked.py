"""`pangu-sigma` in a fork of this process, which has loaded everything: half the time of a start, most of which is imports.

For cases that start a run hundreds of times, in a process that has run no graph: MindSpore's threads do not survive a fork.
What they are compared with is started as users start it, so a fork that did anything else would be noticed.
"""

from __future__ import annotations

import functools
import gc
import importlib
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from pangu_sigma.mindformers_adapter import quiet_mindformers
from pangu_sigma.ranks.processes import SCHEDULER_COMMAND
from pangu_sigma.ranks.ranks import end_as_rank

_LOADED = ("api", "training.loop", "training.log.report", "training.log.summary")


class Forked:
    """A program that runs in a fork; behaves like a `subprocess.Popen`."""

    def __init__(self, program: Callable[[], int], variables: dict[str, str], log: Path):
        """program: returns its exit status. variables: set beside those of this process. log: file for all that it prints."""
        _load()
        self.returncode: int | None = None
        self._pid = os.fork()
        if not self._pid:
            try:
                _run(program, variables, log)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)  # never back into the frames of the process that was forked

    def poll(self) -> int | None:
        """Exit status, minus the number of the signal that ended it; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        """Exit status when it has ended. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a fork", timeout)
            time.sleep(0.05)
        return status

    def kill(self) -> None:
        """Send SIGKILL."""
        if self.poll() is None:
            os.kill(self._pid, signal.SIGKILL)


@functools.cache
def _load() -> None:
    """Import what a run imports, and keep the garbage collector away from it: MindSpore calls it before each compilation."""
    with quiet_mindformers():
        importlib.import_module("mindformers.core.lr")
    for name in _LOADED:
        importlib.import_module(f"pangu_sigma.{name}")
    gc.collect()
    gc.freeze()


def scheduler() -> int:
    """The program of the scheduler of ranks."""
    exec(SCHEDULER_COMMAND[-1], {})
    return 0


def _run(program: Callable[[], int], variables: dict[str, str], log: Path) -> None:
    # tqdm's own lock is one of all forks, and stays locked for all when one of them is killed
    tqdm.set_lock(threading.RLock())
    os.environ.update(variables)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.close(output)
    boot = Path(variables.get("PYTHONPATH", "").partition(os.pathsep)[0], "sitecustomize.py")
    if boot.exists():  # of what watches the program, first on its path; Python runs it when it starts
        runpy.run_path(str(boot))
    end_as_rank(program)
