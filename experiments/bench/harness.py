"""The timing of everything: peers in turn (A B C A B C …), medians, and the ratio pair by pair, which survives a noisy machine."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any

from tqdm import tqdm

RUNS = 9
"""Number of counted runs of each contender, after one that is not counted."""


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One comparison of ours with a peer, or with a limit; `peer` names the peer, or the figure that is limited.

    A comparison has peer_value and ratio: above 1, ours is better; both are None if the peer is not installed. A figure that has a
    limit has neither: it keeps the limit or does not.
    """

    bench: str
    case: str
    ours: float
    peer: str
    peer_value: float | None
    ratio: float | None
    unit: str
    runs: int
    limit: float | None = None
    """The most that `ours` may be; None in a comparison."""

    def __post_init__(self) -> None:
        # A bench that is ended later has shown it.
        logger.info("%s: ours %.2f %s, %s", self.case, self.ours, self.unit, f"{self.peer} {_beside(self)}".strip())

    @property
    def ok(self) -> bool | None:
        """True if ours keeps the limit, rounding aside; None in a comparison."""
        return None if self.limit is None else self.ours <= self.limit * (1 + 1e-9)

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, and `ok`."""
        return asdict(self) | {"ok": self.ok}


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
    """The row of a figure that is not a time, beside the one that it is compared with. lower: True if less is better."""
    return Row(bench, case, ours, what, other, other / max(ours, 1e-9) if lower else ours / other, unit, 1)


def limit(bench: str, case: str, what: str, ours: float, most: float, unit: str) -> Row:
    """The row of a figure that may be `most` and no more. It has no ratio: the distance below the limit means nothing."""
    return Row(bench, case, ours, what, None, None, unit, 1, limit=most)


def absent(bench: str, case: str, ours: float, peer: str, unit: str, runs: int) -> Row:
    """The row of a peer that is not installed."""
    return Row(bench, case, ours, peer, None, None, unit, runs)


def format_rows(rows: list[Row]) -> str:
    """A table of rows under a line for each case."""
    lines = [f"{'bench':8} {'peer':38} {'ours':>10} {'peer':>10} {'ratio':>7}  unit"]
    for case, of_case in groupby(rows, key=lambda row: row.case):
        lines.append(case)
        lines += [f"{row.bench:8} {row.peer:38} {row.ours:10.2f} {_beside(row)}" for row in of_case]
    return "\n".join(lines)


def _beside(row: Row) -> str:
    """The text beside our value: the peer's value and the ratio, or the limit and a word if it is not kept."""
    if row.limit is not None:
        return f"of at most {row.limit:g} {row.unit}: {'ok' if row.ok else 'NOT OK'}"
    value = "absent" if row.peer_value is None else f"{row.peer_value:.2f}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
    return f"{value:>10} {ratio:>7}  {row.unit}"
