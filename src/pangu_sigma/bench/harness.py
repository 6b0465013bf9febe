"""How everything is timed: peers in turn (A B C A B C …), medians, and the ratio pair by pair, which survives a noisy machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
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


def compare(bench: str, case: str, seconds: dict[str, list[float]], ours: str = "ours") -> list[Row]:
    """A row for each peer in `seconds`, in milliseconds; the ratio is the median over rounds of peer ÷ ours."""
    mine = seconds[ours]
    return [
        Row(
            bench=bench,
            case=case,
            ours=1e3 * statistics.median(mine),
            peer=peer,
            peer_value=1e3 * statistics.median(theirs),
            ratio=statistics.median(b / a for a, b in zip(mine, theirs, strict=True)),
            unit="ms",
            runs=len(mine),
        )
        for peer, theirs in seconds.items()
        if peer != ours
    ]


def absent(bench: str, case: str, ours: float, peer: str, unit: str, runs: int) -> Row:
    """The row of a peer that is not installed."""
    return Row(bench, case, ours, peer, None, None, unit, runs)


def format_rows(rows: list[Row]) -> str:
    """A table of rows."""
    lines = [f"{'bench':8} {'case':34} {'ours':>10} {'peer':34} {'peer':>10} {'ratio':>7}  unit"]
    for row in rows:
        value = "absent" if row.peer_value is None else f"{row.peer_value:.2f}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
        lines.append(f"{row.bench:8} {row.case:34} {row.ours:10.2f} {row.peer:34} {value:>10} {ratio:>7}  {row.unit}")
    return "\n".join(lines)
