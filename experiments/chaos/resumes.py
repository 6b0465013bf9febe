"""Runs that are stopped after a random step and go on: every bit of every later checkpoint, and of the log."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from experiments.chaos.cases import Case, data
from experiments.chaos.exact_resume import ExactResume, random_stops

_KINDS = ("accumulation", "overflow", "dropout")


def cases(ranks: int, work: Path, full: bool) -> Sequence[Case]:
    """Twenty stops of each kind; the first goes on in a process of its own, and several ranks always do."""
    return [
        Case(f"{kind}_{number}_after_{step}", partial(_check, work, kind, ranks, step, number == 0))
        for kind in _KINDS
        for number, step in enumerate(random_stops(20 if full else 2, seed=ranks))
    ]


@functools.cache
def _reference(work: Path, kind: str, ranks: int) -> ExactResume:
    """The run that never stopped, once for each process of a row."""
    from pangu_sigma.process import use_cpu

    if ranks == 1:
        use_cpu()  # several ranks are no threads of this process, but forks of it
    folder = work / "resumes" / f"{kind}_{ranks}"
    shutil.rmtree(folder, ignore_errors=True)
    return ExactResume(data(work), folder, kind, ranks, forked=True)


def _check(work: Path, kind: str, ranks: int, step: int, fresh: bool, folder: Path) -> str:
    exact = _reference(work, kind, ranks)
    found = exact.differences(step, fresh)
    assert not found, f"SILENT_DIVERGENCE: {'; '.join(found[:3])} ({len(found)})"
    if kind == "overflow":
        assert exact.skipped > 2, "no step overflowed, so nothing was shown"
    return ""
