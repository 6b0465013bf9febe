"""How everything is timed: peers in turn (A B C A B C …), medians, and the ratio pair by pair, which survives a noisy machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any

from tqdm import tqdm

RUNS = 9
"""Counted runs of each contender, after one that is not counted."""


@dataclass(frozen=True)
class Row:
    """One comparison. ratio > 1: ours is better. A peer that is not installed has peer_value and ratio None."""

    bench: str
    case: str
    ours: float
    peer: str
    peer_value: float | None
    ratio: float | None
    unit: str
    runs: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def take_turns(contenders: dict[str, Callable[[], Any]], runs: int = RUNS) -> dict[str, list[float]]:
    """Seconds of each contender, run in turn; a contender returns when its work is done."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in tqdm(range(runs + 1), desc="bench", unit="round", leave=False):
        for name, work in contenders.items():
            started = time.perf_counter()
            work()
            if run > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def compare(
    bench: str,
    case: str,
    seconds: dict[str, list[float]],
    ours: str = "ours",
    work: float | None = None,
    unit: str = "ms",
) -> list[Row]:
    """A row for each peer in `seconds`; the ratio is the median over rounds of peer ÷ ours.

    Values are milliseconds, or, when `work` says how many units a round does (tokens), the median rate in `unit`.
    """
    mine = seconds[ours]
    value = _milliseconds if work is None else partial(_rate, work)
    return [
        Row(
            bench=bench,
            case=case,
            ours=value(mine),
            peer=peer,
            peer_value=value(theirs),
            ratio=statistics.median(b / a for a, b in zip(mine, theirs, strict=True)),
            unit=unit,
            runs=len(mine),
        )
        for peer, theirs in seconds.items()
        if peer != ours
    ]


def _milliseconds(seconds: list[float]) -> float:
    return 1e3 * statistics.median(seconds)


def _rate(work: float, seconds: list[float]) -> float:
    return work / statistics.median(seconds)


def figure(bench: str, case: str, what: str, ours: float, other: float, unit: str, lower: bool = False) -> Row:
    """A row of something that is not a time, beside what it should be; lower: less is better."""
    return Row(bench, case, ours, what, other, other / max(ours, 1e-9) if lower else ours / other, unit, 1)


def absent(bench: str, case: str, ours: float, peer: str, unit: str, runs: int) -> Row:
    """The row of a peer that is not installed."""
    return Row(bench, case, ours, peer, None, None, unit, runs)


def format_rows(rows: list[Row]) -> str:
    """A table of rows, one per comparison, under a line for each case."""
    lines = [f"{'bench':8} {'peer':38} {'ours':>10} {'peer':>10} {'ratio':>7}  unit"]
    for case, of_case in groupby(rows, key=lambda row: row.case):
        lines.append(case)
        for row in of_case:
            value = "absent" if row.peer_value is None else f"{row.peer_value:.2f}"
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
            lines.append(f"{row.bench:8} {row.peer:38} {row.ours:10.2f} {value:>10} {ratio:>7}  {row.unit}")
    return "\n".join(lines)
