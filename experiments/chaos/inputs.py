"""Bad text, bad configurations, files with anything in them; and checkpoints that are written behind a training."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from experiments.chaos.cases import Case, assert_no_traceback, command, data
from experiments.chaos.config_faults import FAULTS, Fault, arguments_of, file_of, missing_words
from experiments.chaos.poisoned import GOOD, POISONED_FILES, POISONED_LINES, Poisoned, PoisonedFile
from experiments.tiny import tiny_tree
from pangu_sigma.config_file import parse_config
from pangu_sigma.domains import Domains, domains_of
from pangu_sigma.errors import UserError
from pangu_sigma.text.documents import Document, Rejected
from pangu_sigma.text.inputs import input_units, read_unit
from pangu_sigma.text.layout import Layout

_FUZZ_AT_ONCE = 2_600
_SECONDS = 5.0
"""Longest time for a refusal of a configuration, the start of Python included."""


def poisoned(work: Path, full: bool) -> Sequence[Case]:
    """Every line between two good ones, and every file."""
    lines = [Case(f"line_{n}", partial(_line, line)) for n, line in enumerate(POISONED_LINES)]
    return lines + [Case(f"file_{n}", partial(_file, file)) for n, file in enumerate(POISONED_FILES)]


def configurations(work: Path, full: bool) -> Sequence[Case]:
    """Every fault in a process of its own."""
    chosen = list(enumerate(FAULTS))[:: 1 if full else 6]
    return [Case(f"fault_{n}", partial(_fault, fault)) for n, fault in chosen]


def fuzzed(work: Path, full: bool) -> Sequence[Case]:
    """The fuzzing of the suite with more cases: ten times some 2,000, or once."""
    return [Case(f"seed_{n}", partial(_fuzz, n)) for n in range(10 if full else 1)]


def saves(work: Path, full: bool) -> Sequence[Case]:
    """200 checkpoints, or 40."""
    return [Case(f"saves_{count}", partial(_saves, work, count)) for count in ([200] if full else [40])]


def _domains() -> Domains:
    bilingual = {"name": "bilingual", "format": "bilingual", "language": "mixed"}
    return domains_of(parse_config(tiny_tree(Path()) | {"domains": [{"name": "zh", "language": "zh"}, bilingual]}))


def _read(file: Path) -> list[Document | Rejected]:
    return [item for unit in input_units([file], 1 << 20) for item in read_unit(unit, Layout(), _domains())]


def _line(case: Poisoned, folder: Path) -> str:
    file = folder / "a.jsonl"
    file.write_bytes(GOOD + b"\n" + case.line + b"\n" + GOOD + b"\n")
    found = _read(file)
    rejected = [item for item in found if isinstance(item, Rejected)]
    assert len(found) == 3 and len(rejected) == 1, f"{case.name}: {found}"
    assert (rejected[0].reason, rejected[0].offset) == (case.reason, len(GOOD) + 1), f"{case.name}: {rejected}"
    return ""


def _file(case: PoisonedFile, folder: Path) -> str:
    file = folder / case.file
    file.write_bytes(case.content)
    try:
        reasons = {item.reason for item in _read(file) if isinstance(item, Rejected)}
    except UserError as error:
        assert case.error and re.search(case.error, str(error)), f"{case.name}: {error}"
        return ""
    assert reasons == {case.reason}, f"{case.name}: {reasons}"
    return ""


def _fault(fault: Fault, folder: Path) -> str:
    arguments = arguments_of(fault, file_of(fault, folder))
    began = time.monotonic()
    status, said = command([sys.executable, "-m", "pangu_sigma", *arguments], seconds=60)
    seconds = time.monotonic() - began
    assert status == 2, f"{fault.name}: status {status}: {said[-300:]}"
    assert_no_traceback(said)
    missing = missing_words(fault, said)
    assert not missing, f"{fault.name}: {missing} not in {said[-300:]!r}"
    assert seconds < _SECONDS, f"{fault.name}: refused after {seconds:.1f} s"
    return ""


def _fuzz(seed: int, folder: Path) -> str:
    variables = {"PANGU_SIGMA_FUZZ_CASES": str(_FUZZ_AT_ONCE), "PANGU_SIGMA_FUZZ_SEED": str(seed)}
    test = Path(__file__).parents[2] / "tests" / "test_fuzz.py"
    status, said = command([sys.executable, "-m", "pytest", "-q", "-s", str(test)], variables, seconds=900)
    assert status == 0, said[-800:]
    found = re.findall(r": (\d+) of (\d+) past the first look", said)
    past, cases = (sum(map(int, counts)) for counts in zip(*found, strict=True))
    return f"{cases:,} cases, {past / cases:.1%} past the first look"


def _saves(work: Path, count: int, folder: Path) -> str:
    program = [
        sys.executable,
        "-m",
        "experiments.chaos.saves_behind",
        str(folder / "runs"),
        str(count),
        str(data(work)),
    ]
    status, said = command(program, seconds=900)
    assert status == 0, said[-600:]
    return said.strip().splitlines()[-1].partition(" states")[0]
