"""Sandbox for programs that a model has written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from logging import getLogger
from pathlib import Path

from pangu_sigma.bars import Bar
from pangu_sigma.config import ConfigError
from pangu_sigma.errors import argument
from pangu_sigma.evaluate.sandbox.program_limits import ProgramLimits

logger = getLogger(__name__)

_PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
"""Python interpreter without a virtual environment: a program has the standard library."""

_FOR_THE_JAIL = 30
"""Seconds for the start and end of the process around a program, on a busy machine."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a sandboxed program. passed: True if it ran to its end. why: "passed", the limit reached, or its last output."""

    passed: bool
    why: str


class Sandbox:
    """Sandbox that runs Python programs, each in one process with its own user id, root folder, Linux namespaces and limits.

    A program sees Python's standard library and an empty folder; no network, no other process, no file of the user's.
    """

    def __init__(self, limits: ProgramLimits = ProgramLimits(), unsafe: bool = False):  # noqa: B008 (frozen)
        """unsafe: True to run programs even where they cannot be isolated: within the limits and without the system calls of
        `system_calls.DENIED`, but under the user's own id, with access to all files of the user. A warning says so. Raises
        ConfigError where programs cannot be isolated, or not started at all.
        """
        self._limits, self._unsafe = limits, unsafe
        self._check()

    def run(self, program: str) -> Outcome:
        """Run a program to its end, or to a limit. Afterwards none of its processes and files are left."""
        report = self._jailed(program, self._unsafe)
        if "missing" in report:
            raise ConfigError(_refusal(report["missing"]))
        return Outcome(**report)

    def run_all(self, programs: Sequence[str]) -> list[Outcome]:
        """Run programs in parallel, one on each usable CPU, and return their outcomes in order."""
        threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "sandbox")
        try:
            outcomes = threads.map(self.run, programs)
            return list(Bar(outcomes, "run programs", len(programs), leave=False, unit="program"))
        finally:
            threads.shutdown(cancel_futures=True)

    def _check(self) -> None:
        """Check that programs can be isolated and started."""
        report = self._jailed("", unsafe=False)
        if "missing" in report:
            if not self._unsafe:
                raise ConfigError(_refusal(report["missing"]))
            logger.warning(
                "programs are not isolated, because %s is missing here: they run under your user id, and can read and change "
                "what you can; limits on time, memory and output hold, and the network and other processes are out of reach",
                report["missing"],
            )
            report = self._jailed("", unsafe=True)
        if not report.get("passed"):
            raise ConfigError(
                f"an empty program does not run in the sandbox: {report.get('why') or report['missing']}; {_PYTHON} must "
                f"start there, within {self._limits}, with its own folder, {sys.base_prefix}, and the libraries in /usr and /lib"
            )

    def _jailed(self, program: str, unsafe: bool) -> dict:
        """Return the result of `jail.run_program` for a program."""
        task = {"program": program, "limits": asdict(self._limits), "unsafe": unsafe, "parent": os.getpid()}
        command = [_PYTHON, "-s", "-S", "-P", "-m", "pangu_sigma.evaluate.sandbox.jail"]
        surroundings = {"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": os.environ.get("PATH", "")}
        done = subprocess.run(
            command,
            input=json.dumps(task).encode(),
            capture_output=True,
            env=surroundings,
            start_new_session=True,
            timeout=self._limits.wall_seconds + _FOR_THE_JAIL,
        )
        if done.returncode or not done.stdout:
            raise RuntimeError(
                f"the sandbox failed, with status {done.returncode}: {done.stderr.decode(errors='replace')}"
            )
        return json.loads(done.stdout)


def _refusal(missing: str) -> str:
    return (
        f"programs cannot be isolated here: {missing}. It takes Linux on x86_64 or aarch64, and either root with the capability "
        "SYS_ADMIN, or any user where user namespaces are allowed (/proc/sys/user/max_user_namespaces is above 0, and nothing "
        f"else forbids them). With {argument('--allow-code-execution')} they run all the same, within the limits, but as you and "
        "with your files in reach"
    )
