"""Runs whose worker updates experts behind the step, killed at a random moment, against a run that updates in its steps."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from experiments.chaos.cases import CASE_SECONDS, TRAIN, Case, assert_same, command, configuration, data, end_of, once
from experiments.chaos.launched import eventually

_STEPS, _SAVED = 300, 50
_WIDE = {"hidden": 64, "ffn": 2_048, "experts_per_domain": 8}
"""Experts of a size with which their update takes a large part of a step, so that a random moment is mostly within one."""


def cases(work: Path, full: bool) -> Sequence[Case]:
    """SIGKILL at a random moment behind the first checkpoint; the same command then goes on."""
    return [Case(f"killed_{n}", partial(_killed, work, n)) for n in range(20 if full else 2)]


def _configuration(folder: Path, work: Path, update: str) -> Path:
    train = {"steps": _STEPS, "checkpoint_interval": _SAVED, "keep_checkpoints": 2}
    return configuration(folder, data(work), model=_WIDE, train=train, ecss={"update": update})


def _reference(work: Path, folder: Path) -> None:
    file = _configuration(folder, work, "step")
    status, text = command([*TRAIN, str(file), "--output", str(folder / "run")])
    assert status == 0, text


def _killed(work: Path, number: int, folder: Path) -> str:
    reference, run = once(work, "updated_in_steps", partial(_reference, work)), folder / "run"
    arguments = [*TRAIN, str(_configuration(folder, work, "worker")), "--output", str(run)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: list((run / "checkpoints").glob("step_*")), CASE_SECONDS)
        time.sleep(random.Random(number).uniform(0.0, 4.0))
        assert process.poll() is None, "the run ended before it was killed"
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    status, text = command([*TRAIN, str(run)])
    assert status == 0, text[-600:]
    assert_same(end_of(run), end_of(reference / "run"))
    return ""
