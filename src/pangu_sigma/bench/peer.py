"""A peer in a process of another Python: its packages do not agree with ours, and one process would have two OpenMP runtimes.

The worker's script prints a line of JSON when it is ready, and one for each line that it reads, when that step is done. Between
steps it waits for the next line and costs nothing, so that it can take turns with contenders of this process.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).parents[3]


def peers_python() -> Path | None:
    """The interpreter that has the peers: PANGU_SIGMA_PEERS, or that of .venv-peers; None, with a warning, if there is none."""
    python = Path(os.environ.get("PANGU_SIGMA_PEERS", REPOSITORY / ".venv-peers" / "bin" / "python"))
    if python.exists():
        return python
    logger.warning("%s does not exist: bash run_scripts/peers.sh installs the peers", python)
    return None


def _first_environment() -> dict[str, str]:
    """Environment that this process was started with. What MindSpore and our OpenMP settings add to it halves torch's speed."""
    entries = Path("/proc/self/environ").read_bytes().decode(errors="surrogateescape").split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


class Worker:
    """A running script. started: the JSON that it printed when it was ready."""

    def __init__(self, python: Path, script: Path, *arguments: str):
        """Start the script and wait until it is ready. Raises RuntimeError if it ends instead; its message is on standard error."""
        self._command = [
            str(python),
            "-I",
            str(script),
            *arguments,
        ]  # -I: nothing of our environment is importable there
        pipe, environment = subprocess.PIPE, _first_environment()
        self._process = subprocess.Popen(self._command, env=environment, stdin=pipe, stdout=pipe, text=True)
        self.started = self._answer()

    def step(self) -> dict[str, Any]:
        """Take one step and return the script's JSON about it. Raises RuntimeError if the script has ended."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the missing answer shows that the script has ended
            print("go", file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the script, which must not be in a step."""
        self._process.communicate()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"a peer ended with status {self._process.returncode}: {' '.join(self._command)}")
        return json.loads(line)
