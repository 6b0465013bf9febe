"""The cases of a comparison: each runs once, in a process of its own, and the same command goes on with those that are left.

FOLDER/cases.json holds the settings that the folder was begun with, and for each case that has ended the seconds that passed and
those of the CPU.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
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
        self._number = 0
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
        self._number += 1
        if name in self.seconds:
            return
        logger.info("== %d of %d: %s", self._number, self._total, name)
        process = multiprocessing.get_context("spawn").Process(target=_child, args=(work, arguments), name=name)
        started, cpu = time.perf_counter(), _cpu_seconds()
        process.start()
        process.join()
        if process.exitcode == _STOPPED:
            raise CaseError(f"{name} was stopped before its end; the same command goes on")
        if process.exitcode != 0:
            raise CaseError(f"{name} ended with status {process.exitcode}; see above, the same command tries it again")
        self.seconds[name] = [round(time.perf_counter() - started, 2), round(_cpu_seconds() - cpu, 2)]
        self._save()

    def summary(self) -> str:
        """How long all cases took."""
        passed, cpu = (sum(each[at] for each in self.seconds.values()) / 60 for at in (0, 1))
        return f"{len(self.seconds)} cases took {passed:.0f} minutes, {cpu:.0f} of them CPU"

    def _save(self) -> None:
        found = {"settings": self._settings, "seconds": self.seconds}
        write_atomically(self.folder / CASES_FILE, f"{json.dumps(found, ensure_ascii=False, indent=1)}\n".encode())


def _child(work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    log_to_terminal()
    sys.exit(exit_status(lambda: 0 if work(*arguments) else _STOPPED))


def _cpu_seconds() -> float:
    """Seconds of the CPU that ended child processes took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def log_to_terminal() -> None:
    """Send the log to standard error, as the command `pangu-sigma` does."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


def train_whole(config: Config, run: Path) -> bool:
    """Train a run to its last step. Returns False if it was asked to stop before."""
    from pangu_sigma.train.loop import train

    return train(config, run).finished
