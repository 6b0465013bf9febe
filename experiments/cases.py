"""The cases of a comparison: each runs once, in a process of its own, and the same command goes on with those that are left.

FOLDER/cases.json holds the settings that the folder was begun with, and for each case that has ended the seconds that passed and
those of the CPU.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock
from typing import Any

from pangu_sigma.config import Config
from pangu_sigma.errors import UserError, exit_status
from pangu_sigma.sealed import write_atomically

CASES_FILE = "cases.json"
_STOPPED = 3
"""Exit status of a case that was asked to stop."""

logger = logging.getLogger(__name__)


class CaseError(UserError, RuntimeError):
    """A case did not come to its end, or a folder holds a comparison with other settings."""


class Cases:
    """The cases of the comparison in a folder. seconds: of each case that has ended, those that passed and those of the CPU."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], total: int):
        """Begin the folder, or take it up again. settings: what all cases share. total: number of cases, for messages.

        Raises CaseError for a folder that was begun with other settings.
        """
        self.folder, self._settings, self._total = folder, json.loads(json.dumps(settings)), total
        self.seconds: dict[str, list[float]] = {}
        self._number, self._lock = 0, Lock()
        if (folder / CASES_FILE).exists():
            found = json.loads((folder / CASES_FILE).read_bytes())
            if found["settings"] != self._settings:
                raise CaseError(
                    f"{folder} was begun with other settings: {found['settings']}, not {self._settings}; use another --folder"
                )
            self.seconds = found["seconds"]
        folder.mkdir(parents=True, exist_ok=True)
        self._save()

    def run(self, name: str, work: Callable[..., object], *arguments: object) -> None:
        """Run `work(*arguments)` in a new process, unless this case has ended before. Both must be picklable.

        work: returns something false if it was asked to stop before its end. Raises CaseError then, and when it fails.
        """
        with self._lock:
            self._number += 1
            if name in self.seconds:
                return
            logger.info("== %d of %d: %s", self._number, self._total, name)
        spawn = multiprocessing.get_context("spawn")
        cpu, writer = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_child, args=(writer, work, arguments), name=name)
        started = time.perf_counter()
        process.start()
        writer.close()
        process.join()
        if process.exitcode == _STOPPED:
            raise CaseError(f"{name} was stopped before its end; the same command goes on")
        if process.exitcode != 0:
            raise CaseError(f"{name} ended with status {process.exitcode}; see above, the same command tries it again")
        with self._lock:
            self.seconds[name] = [round(time.perf_counter() - started, 2), round(cpu.recv(), 2)]
            self._save()

    def run_all(self, cases: Mapping[str, tuple[Any, ...]], jobs: int = 1) -> None:
        """Run cases, in order, `jobs` of them at the same time, and each on its share of the cores that this process may use.

        cases: by name, the further arguments of `run`. If a case fails, those that have begun end, and no other one begins.
        Raises CaseError for the first failure, and for more jobs than cores.
        """
        cores = sorted(os.sched_getaffinity(0))
        if not 1 <= jobs <= len(cores):
            raise CaseError(f"--jobs {jobs}: give 1 to {len(cores)}, the number of cores of this process")
        shares: SimpleQueue[list[int]] = SimpleQueue()
        for i in range(jobs):
            shares.put(cores[i::jobs])
        ended = Event()

        def work(name: str, case: tuple[Any, ...]) -> None:
            try:
                if not ended.is_set():
                    self.run(name, *case)
            except BaseException:
                ended.set()
                raise

        # A process that a thread starts runs on the thread's cores, and has no more threads than they are.
        with ThreadPoolExecutor(jobs, initializer=lambda: os.sched_setaffinity(0, shares.get())) as pool:
            running = [pool.submit(work, *case) for case in cases.items()]
            try:
                for each in running:
                    each.result()
            finally:
                ended.set()

    def summary(self) -> str:
        """How long all cases took."""
        passed, cpu = (sum(each[at] for each in self.seconds.values()) / 60 for at in (0, 1))
        return f"{len(self.seconds)} cases took {passed:.0f} minutes, {cpu:.0f} of them CPU"

    def _save(self) -> None:
        found = {"settings": self._settings, "seconds": self.seconds}
        write_atomically(self.folder / CASES_FILE, f"{json.dumps(found, ensure_ascii=False, indent=1)}\n".encode())


def _child(cpu: Connection, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    log_to_terminal()
    status = exit_status(lambda: 0 if work(*arguments) else _STOPPED)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu.send(sum(each.ru_utime + each.ru_stime for each in used))
    sys.exit(status)


def log_to_terminal() -> None:
    """Send the log to standard error, as the command `pangu-sigma` does."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


def train_whole(config: Config, run: Path) -> bool:
    """Train a run to its last step. Returns False if it was asked to stop before."""
    from pangu_sigma.training.loop import train

    trainer = train(config, run)
    return trainer is None or trainer.finished
