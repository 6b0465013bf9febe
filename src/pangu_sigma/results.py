"""Results of the Python interface: plain values that print as the command's table; and the result of one check of a machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def aligned(rows: Sequence[Sequence[str]], sides: str, unit: str = "") -> list[str]:
    """Return the rows of a table, heads first, as aligned lines. sides: "<" (left) or ">" (right) for each column; the last one
    also for the columns after it. unit: text behind the heads."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = sides.ljust(len(widths), sides[-1])
    head, *lines = ("  ".join(map("{:{}{}}".format, row, sides, widths)).rstrip() for row in rows)
    return [f"{head}   {unit}" if unit else head, *lines]


class _Printed:
    """Result of a call as plain values; prints as the command's table. ok: False if the command exits with status 1."""

    def __init__(self, values: Any, table: str, ok: bool = True):
        super().__init__(values)  # type: ignore[call-arg]  # of dict or list
        self.table, self.ok = table, ok

    def __repr__(self) -> str:
        return self.table


class Result(_Printed, dict[str, Any]):
    """Result of a call of the Python interface, a dictionary; prints as the command's table."""


class Results(_Printed, list[Any]):
    """Result of a call of the Python interface, a list; prints as the command's table."""


class Table(_Printed, dict[str, Any]):
    """Columns by name, arrays or lists of one length, such as `pandas.DataFrame` takes; prints their names and ends."""

    def __init__(self, columns: Mapping[str, Sequence[Any]]):
        """Make a table that prints the name of each column, and its first and last value."""
        row_count = len(next(iter(columns.values()), ()))
        ends = {name: f"{_short(values[0])} … {_short(values[-1])}" for name, values in columns.items() if len(values)}
        head = f"{row_count:,} rows; the columns, from the first value to the last:"
        super().__init__(columns, "\n".join([head, *aligned([*ends.items()], "<")]))


def _short(value: Any) -> str:
    """Return a value of a table for people: the size of an array or list, a number in six digits."""
    if isinstance(value, str) or not hasattr(value, "__len__"):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    return f"[{' × '.join(map(str, getattr(value, 'shape', (len(value),))))}]"


@dataclass(frozen=True)
class Check:
    """Result of one check of a host before launching. state: what the check saw. fix: advice to the user if it failed."""

    name: str
    ok: bool
    state: str
    fix: str = ""


def passed(state: str) -> Check:
    """Return the result of a passed check of a host; the caller sets its name."""
    return Check("", True, state)


def failed(state: str, fix: str) -> Check:
    """Return the result of a failed check of a host; the caller sets its name. fix: advice to the user."""
    return Check("", False, state, fix)
