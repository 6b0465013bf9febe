"""One thing that was looked at on a machine: what was found and, when it is wrong, what to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One thing looked at. fix: what to do, empty when ok."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def fine(found: str) -> Check:
    """A check that passed; who asked for it gives it its name."""
    return Check("", True, found)


def wrong(found: str, fix: str) -> Check:
    """A check that failed; who asked for it gives it its name."""
    return Check("", False, found, fix)
