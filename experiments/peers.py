"""Peers in processes of another Python: its packages do not agree with ours, and one process would have two OpenMP runtimes.

`python -m experiments.peers` makes that environment, .venv-peers in the repository; nothing else uses it. mindformers needs an
older transformers than the one that is worth comparing with.

The worker's program prints a line of JSON when it is ready, and one for each line that it reads, when that step is done. Between
steps it waits for the next line and costs nothing, so that it can take turns with contenders of this process.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).parents[1]
PACKAGES = (
    *("torch>=2.9", "transformers>=5", "deepspeed>=0.19", "nltk", "jieba", "sentencepiece", "six"),
    *("peft>=0.18", "lm-eval[hf]>=0.4.13"),
)


def install(folder: Path) -> None:
    """Make the environment of the peers in a folder, unless it holds these packages already."""
    stamp = folder / "installed"
    if stamp.exists() and stamp.read_text() == " ".join(PACKAGES):
        return
    logger.info("installing %s into %s", " ".join(PACKAGES), folder)
    pip = [str(folder / "bin" / "pip"), "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "install", "--quiet", *PACKAGES],
        [*pip, "check"],
    ):
        subprocess.run(command, check=True)
    stamp.write_text(" ".join(PACKAGES))


def peers_python() -> Path | None:
    """The interpreter that has the peers: PANGU_SIGMA_PEERS, or that of .venv-peers; None, with a warning, if there is none."""
    python = Path(os.environ.get("PANGU_SIGMA_PEERS", REPOSITORY / ".venv-peers" / "bin" / "python"))
    if python.exists():
        return python
    logger.warning("%s does not exist: python -m experiments.peers installs the peers", python)
    return None


def _first_environment() -> dict[str, str]:
    """Environment that this process was started with. What MindSpore and our OpenMP settings add to it halves torch's speed."""
    entries = Path("/proc/self/environ").read_bytes().decode(errors="surrogateescape").split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def script_of(python: Path, script: Path) -> list[str]:
    """The command that runs a script of the peers: -I, so that nothing of our environment is importable there."""
    return [str(python), "-I", str(script)]


class Worker:
    """A running script. started: the JSON that it printed when it was ready."""

    def __init__(self, command: Sequence[str], *arguments: str):
        """Start the program and wait until it is ready. Raises RuntimeError if it ends instead; its message is on standard error.

        command: what `script_of` returns, or a program of this repository, in which it runs.
        """
        self._command = [*command, *arguments]
        pipe, environment = subprocess.PIPE, _first_environment()
        self._process = subprocess.Popen(
            self._command, env=environment, stdin=pipe, stdout=pipe, text=True, cwd=REPOSITORY
        )
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


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    install(REPOSITORY / ".venv-peers")
