"""Lines of one kind of a run's metrics.jsonl as columns, for figures, tables and data frames."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.config import ConfigError
from pangu_sigma.training.log.metrics import FILE, flat, read_metrics


def metrics_columns(run: Path, kind: str) -> dict[str, Any]:
    """Return `columns` of the lines of a kind; metrics.py says what they hold.

    Raises ConfigError for a folder without a log, and for a kind that it does not have.
    """
    try:
        lines = lines_by_kind(run)
    except OSError as error:
        raise ConfigError(f"{run / FILE}: {error.strerror}; name a run folder, in which training writes it") from None
    if kind not in lines:
        raise ConfigError(f"kind={kind!r}: {run / FILE} has no such lines; it has {', '.join(lines) or 'none'}")
    return columns(lines[kind])


def lines_by_kind(run: Path) -> defaultdict[str, list[dict[str, Any]]]:
    """Return the lines of a run's log by their kind, in order. Raises FileNotFoundError without a log."""
    lines = defaultdict(list)
    for line in read_metrics(run, steps=True):
        lines[line["kind"]].append(line)
    return lines


def columns(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return lines as columns by name, a row for each line. A value by domain becomes a column of each, such as unigram/en.

    Numbers are arrays, NaN where a line has none; a line of kind "load" holds an array, so tokens_NK is int [rows, N, K]. Anything
    else is a list, None where a line has none.
    """
    rows = [flat(line) for line in lines]
    names = dict.fromkeys(name for row in rows for name in row if name != "kind")
    return {name: _column([row.get(name) for row in rows]) for name in names}


def points(of: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of a column where it is finite; empty arrays without such a column of numbers."""
    values = of.get(name)
    if not isinstance(values, np.ndarray):
        return np.array([]), np.array([])
    return of["step"][np.isfinite(values)], values[np.isfinite(values)]


def last(of: Mapping[str, Any], name: str) -> float | None:
    """Return the last finite value of a column; None without any. A `step` line has only the domains of its batches."""
    values = points(of, name)[1].tolist()
    return values[-1] if values else None


def _column(values: list[Any]) -> Any:
    with suppress(ValueError):  # rows of several lengths
        array = np.array([math.nan if value is None else value for value in values])
        return array if array.dtype.kind in "if" else values
    return values
