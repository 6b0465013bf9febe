"""Lines of one kind of a run's metrics.jsonl as columns, for plots and data frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.config import ConfigError
from pangu_sigma.training.log.metrics import FILE, read_metrics


def metrics_columns(run: Path, kind: str) -> dict[str, Any]:
    """Return the lines of a kind, one row each, as columns by name; metrics.py says what they hold.

    A value by domain becomes a column of each, such as per_domain_loss/en. Numbers are arrays, NaN where a line has none; a line of
    kind "load" holds an array, so tokens_NK is int [rows, N, K]. Anything else is a list, None where a line has none. Raises
    ConfigError for a folder without a log, and for a kind that it does not have.
    """
    try:
        lines = read_metrics(run)
    except OSError as error:
        raise ConfigError(f"{run / FILE}: {error.strerror}; name a run folder, in which training writes it") from None
    rows = [_flat(line) for line in lines if line["kind"] == kind]
    if not rows:
        there = ", ".join(dict.fromkeys(line["kind"] for line in lines)) or "none"
        raise ConfigError(f"kind={kind!r}: {run / FILE} has no such lines; it has {there}")
    names = dict.fromkeys(name for row in rows for name in row if name != "kind")
    return {name: _column([row.get(name) for row in rows]) for name in names}


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat = dict[str, Any]()
    for name, value in values.items():
        flat |= _flat(value, f"{path}{name}/") if isinstance(value, Mapping) else {path + name: value}
    return flat


def _column(values: list[Any]) -> Any:
    if all(isinstance(value, int | float | None) and not isinstance(value, bool) for value in values):
        return np.array(values, None if all(isinstance(value, int) for value in values) else float)
    if all(isinstance(value, list) for value in values):
        try:
            array = np.array(values)
        except ValueError:  # rows of several lengths
            return values
        return array if array.dtype.kind in "if" else values
    return values
