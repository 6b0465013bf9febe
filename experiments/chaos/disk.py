"""A disk that is full from some moment on, and one that fails once, under a training run: at every call that writes.

`failing.c` stands between the program and the C library and counts the calls that write below a folder.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from experiments.chaos.cases import (
    TRAIN,
    Case,
    assert_no_traceback,
    assert_same,
    command,
    configuration,
    data,
    end_of,
    once,
)

_SOURCE = Path(__file__).with_name("failing.c")
_FULL, _SHORT = 20, 4


def cases(errno_name: str, work: Path, full: bool) -> Sequence[Case]:
    """Calls at which the disk fails, spread over all that the run makes."""
    reference = once(work, "disk", partial(_reference, work))
    calls = int((reference / "calls").read_text())
    count = _FULL if full else _SHORT
    numbers = sorted({1 + i * calls // count for i in range(count)})
    return [Case(f"{errno_name}_{n}", partial(_check, reference, errno_name, n)) for n in numbers]


def _reference(work: Path, folder: Path) -> None:
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-o", str(folder / "failing.so"), str(_SOURCE), "-ldl"], check=True
    )
    config = configuration(folder, data(work))
    variables = _layer(folder, folder / "run", 0, "ENOSPC") | {"FAILING_COUNT": str(folder / "calls")}
    status, said = command([*TRAIN, str(config), "--output", str(folder / "run")], variables)
    assert status == 0, said


def _layer(reference: Path, run: Path, number: int, errno_name: str) -> dict[str, str]:
    return {
        "LD_PRELOAD": str(reference / "failing.so"),
        "FAILING_BELOW": str(run),
        "FAILING_AT": str(number),
        "FAILING_WITH": errno_name,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def _check(reference: Path, errno_name: str, number: int, folder: Path) -> str:
    config, run = str(reference / "config.yaml"), folder / "run"
    status, said = command([*TRAIN, config, "--output", str(run)], _layer(reference, run, number, errno_name))
    assert status in (0, 2), f"status {status}: {said[-600:]}"
    assert_no_traceback(said)
    if status == 2:
        assert "error: " in said, f"no message: {said[-300:]}"
    status, said = command([*TRAIN, config, "--output", str(run)])
    assert status == 0, f"HARD_FAIL once the disk is well again: {said[-600:]}"
    assert_same(end_of(run), end_of(reference / "run"))
    left = [str(path.relative_to(run)) for path in run.rglob(".unfinished*")]
    assert not left, f"left behind: {left}"
    return ""
