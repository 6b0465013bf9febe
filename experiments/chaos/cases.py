"""What a row and a case are, and what cases share: prepared data, configurations, commands, comparisons of runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.chaos.runs import digests, newest
from experiments.tiny import prepare_tiny, tiny_tree

TRAIN = [sys.executable, "-m", "pangu_sigma", "train"]
CASE_SECONDS = 300
"""Longest time that a command of a case may take; longer is a hang."""


@dataclass(frozen=True)
class Case:
    """One fault.

    check: does it in the empty folder that it is given, and returns a figure for the table, or "". An AssertionError says what did
        not hold.
    """

    name: str
    check: Callable[[Path], str]


@dataclass(frozen=True)
class FaultRow:
    """A kind of fault. must: what holds in every case. cases: from the work folder and `full`, the cases to do.

    alone: True for a row whose seconds count, so that no other one runs beside it.
    """

    name: str
    must: str
    cases: Callable[[Path, bool], Sequence[Case]]
    alone: bool = False


def once(work: Path, name: str, make: Callable[[Path], Any]) -> Path:
    """A folder that make(folder) filled, made by the first who needs it and kept for all later ones."""
    from pangu_sigma.writable import NotWritable, folder_lock

    folder, whole = work / name, work / f"{name}.whole"
    while not whole.exists():
        try:
            with folder_lock(work / f"{name}.lock"):
                if not whole.exists():
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir(parents=True)
                    make(folder)
                    whole.touch()
        except NotWritable:
            time.sleep(0.2)
    return folder


def data(work: Path) -> Path:
    """The tiny prepared data of the tests."""
    return once(work, "data", prepare_tiny) / "prepared"


def configuration(folder: Path, prepared: Path, **sections: dict[str, Any]) -> Path:
    """A YAML file of the tiny configuration in `folder`: 6 steps, saved after every second, all kept."""
    tree = tiny_tree(prepared)
    tree["train"] |= {
        "steps": 6,
        "checkpoint_interval": 2,
        "eval_interval": 100,
        "eval_batches": 1,
        "keep_checkpoints": 100,
        "log_interval": 2,
    }
    for name, keys in sections.items():
        tree[name] = tree.get(name, {}) | keys
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return file


def command(
    arguments: list[str], extra: dict[str, str] | None = None, seconds: float = CASE_SECONDS
) -> tuple[int, str]:
    """Exit status of a command and all that it said. AssertionError if it hangs."""
    try:
        done = subprocess.run(
            arguments, env=os.environ | (extra or {}), capture_output=True, text=True, timeout=seconds, errors="replace"
        )
    except subprocess.TimeoutExpired:
        raise AssertionError(f"HANG: {arguments[1:]} did not end within {seconds:g} s") from None
    return done.returncode, done.stdout + done.stderr


def end_of(run: Path) -> dict[str, str]:
    """Hashes of everything in a run's newest checkpoint."""
    return digests(newest(run).path)


def assert_same(found: dict[str, str], expected: dict[str, str]) -> None:
    """AssertionError names the first arrays that differ."""
    different = [name for name in expected if found.get(name) != expected[name]] + sorted(
        found.keys() - expected.keys()
    )
    assert not different, f"SILENT_DIVERGENCE in {', '.join(different[:3])} ({len(different)} of {len(expected)})"


def assert_no_traceback(text: str) -> None:
    """AssertionError if what a command said has a traceback."""
    assert "Traceback (most recent call last)" not in text, f"a traceback: {text[-600:]}"
