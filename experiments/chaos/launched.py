"""A launcher in a process of its own, as a user has it, and whatever it left running."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")

PATIENCE = 120.0
"""Seconds that tests wait for what an idle machine does at once: processes that still start or end take long on a busy one."""
MARK = "LAUNCHED_BY_TEST"
"""Variable by which everything that a launcher started, directly or not, is found again."""

_LAUNCH = """
import logging, sys
from pathlib import Path
from pangu_sigma.ranks.launch import Job, launch
from pangu_sigma.ranks.processes import LaunchError
logging.basicConfig(level=logging.INFO, format="%(message)s")
try:
    sys.exit(launch(eval(sys.argv[1])))
except LaunchError as error:
    sys.exit(f"error: {error}")
"""


def _as_at_a_terminal() -> None:
    """Tests that run in the background inherit signals that are ignored, and a launcher leaves those ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Launched:
    """A running launcher, `command`, whose ranks log to folders in `logs`."""

    def __init__(self, command: list[str], logs: Path):
        self.logs, self.mark = logs, uuid.uuid4().hex
        self.process = subprocess.Popen(
            command,
            env=os.environ | {MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_as_at_a_terminal,
        )
        self.output = self.errors = ""

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        for pid in self.left():
            os.kill(pid, signal.SIGKILL)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Exit status; what it printed is then in `output` and `errors`."""
        self.output, self.errors = self.process.communicate(timeout=seconds)
        return self.process.returncode

    def hear(self, words: str) -> None:
        """Wait until it has printed these words to its errors; what it prints until then is not in `errors`."""
        assert self.process.stderr is not None
        while words not in (line := self.process.stderr.readline()):
            assert line, f"it ended without saying {words!r}"

    def left(self) -> list[int]:
        """Processes, the launcher excepted, that are still there."""
        others = (process for process in psutil.process_iter() if process.pid != self.process.pid)
        return [process.pid for process in others if environment_of(process).get(MARK) == self.mark]

    def rank(self, rank: int, start: int = 0) -> int:
        """Process id of a rank, once it has printed something. start: 1 after the first restart."""
        eventually(lambda: "".join(self.texts(rank)[start:]))
        return self.pid(rank)

    def pid(self, rank: int) -> int:
        """Process id of a rank that runs, whether it says something or not."""
        wanted = {"MS_ROLE": "MS_WORKER", "RANK_ID": str(rank)}.items()
        children = psutil.Process(self.process.pid).children()
        return next(child.pid for child in children if wanted <= environment_of(child).items())

    def texts(self, rank: int) -> list[str]:
        """What a rank has written at each start."""
        return [file.read_text() for file in sorted(self.logs.glob(f"*/worker_{rank}.log"))]


def launched(program: str | list[str], logs: Path, **fields: object) -> Launched:
    """A launcher of a `Job` whose ranks, two unless `fields` says so, run a Python program or another command."""
    command = [sys.executable, "-c", program] if isinstance(program, str) else program
    fields = {"command": command, "ranks": 2, "port": free_port(), **fields}
    return Launched([sys.executable, "-P", "-c", _LAUNCH, f"Job(logs=Path({str(logs)!r}), **{fields!r})"], logs)


def eventually(condition: Callable[[], T], seconds: float = PATIENCE) -> T:
    """The condition's value as soon as it is true; AssertionError when that takes longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return value


def environment_of(process: psutil.Process) -> dict[str, str]:
    """The variables that a process was started with; none if it has ended."""
    try:
        return process.environ()
    except psutil.Error:
        return {}


_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_ports = itertools.count(20_000 + _worker % 3 * 4_000 + os.getpid() % 1_000 * 2, 2)
"""Processes that run tests side by side have thousands of ports each: one that is free now is not taken by the other."""


def free_port() -> int:
    """A port that is free now, as is the one after it; below those that the kernel gives to outgoing connections."""
    for port in _ports:
        try:
            for each in (port, port + 1):
                socket.create_server(("127.0.0.1", each)).close()
            return port
        except OSError:
            continue
    raise AssertionError("unreachable: the ports are endless")
