"""`pangu-sigma` started as several ranks on this machine, as `launch` does it: a process a rank, and a scheduler."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from experiments.chaos.forked import Forked, scheduler
from experiments.chaos.launched import free_port
from pangu_sigma.cli import main
from pangu_sigma.ranks.processes import SCHEDULER_COMMAND

MAIN = "import sys; from pangu_sigma.cli import program; sys.exit(program())"
CRASHES_AT_EXIT = "import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.SIGSEGV)\n"
"""As MindSpore's teardown does now and then; a rank is to end without it."""


class RankProcesses:
    """The processes of a run; kills what is left of them when its block ends."""

    def __init__(
        self,
        ranks: int,
        arguments: list[str],
        logs: Path,
        own: dict[int, dict[str, str]] | None = None,
        program: str = MAIN,
        forked: bool = False,
    ):
        """logs: folder for what each rank prints, `<rank>.log`.
        own: environment variables of single ranks.
        program: Python that they run with `arguments`.
        forked: True if the ranks are forks of this process, and run `pangu-sigma`; see `Forked`.
        """
        logs.mkdir(parents=True, exist_ok=True)
        shared = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "MS_WORKER_NUM": str(ranks),
            "MS_SCHED_HOST": "127.0.0.1",
            "MS_SCHED_PORT": str(free_port()),
        }
        self.logs = [logs / f"{rank}.log" for rank in range(ranks)]
        self.workers: list[subprocess.Popen | Forked] = []
        for rank, log in enumerate(self.logs):
            variables = {**shared, "MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank), **(own or {}).get(rank, {})}
            if forked:
                self.workers.append(Forked(partial(main, arguments), variables, log))
            else:
                self.workers.append(_start([sys.executable, "-c", program, *arguments], variables, log))
        variables, log = {**shared, "MS_ROLE": "MS_SCHED"}, logs / "scheduler.log"
        self.scheduler = Forked(scheduler, variables, log) if forked else _start(SCHEDULER_COMMAND, variables, log)

    def __enter__(self) -> RankProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.workers, self.scheduler):
            if process.poll() is None:
                process.kill()
            process.wait()

    def wait(self, seconds: float) -> list[int]:
        """Exit status of each rank."""
        return [worker.wait(seconds) for worker in self.workers]

    def said(self) -> str:
        """What the ranks printed, for messages of failed tests."""
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}" for log in self.logs)


def _start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen:
    with log.open("w") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)
