"""Result of one check of a machine: the finding and, if it is wrong, the fix."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """Result of one check of a host before launching. found: the finding. fix: advice to the user, empty if ok."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def passed(found: str) -> Check:
    """Return the result of a passed check of a host; the caller sets its name."""
    return Check("", True, found)


def failed(found: str, fix: str) -> Check:
    """Return the result of a failed check of a host; the caller sets its name. fix: advice to the user."""
    return Check("", False, found, fix)
