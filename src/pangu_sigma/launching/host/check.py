"""Result of one check of a machine: the finding and, if it is wrong, the fix."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """Result of one check. found: the finding. fix: the remedy, empty if ok."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def passed(found: str) -> Check:
    """Return a passed check; the caller sets its name."""
    return Check("", True, found)


def failed(found: str, fix: str) -> Check:
    """Return a failed check; the caller sets its name."""
    return Check("", False, found, fix)
