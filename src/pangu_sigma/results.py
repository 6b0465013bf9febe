"""Results of the Python interface: plain values that print as the command's table."""

from __future__ import annotations

from typing import Any


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
