"""Crashes at every change of a folder: a call is stopped before its n-th one, as a kill would."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


class Killed(BaseException):
    """Nothing catches it, so nothing is tidied up."""


class _Watch:
    """Counts changes under a folder, and stops before the one whose number is `at`."""

    folder: str | None = None
    at = count = 0

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.folder is None or not (event in _CHANGES or (event == "open" and _writes(arguments))):
            return
        if isinstance(arguments[0], str | Path) and str(arguments[0]).startswith(self.folder):
            self.count += 1
            if self.count > self.at:
                raise Killed(f"before {event} {arguments[0]}")


_watch = _Watch()
_hooked: list[bool] = []


def _writes(arguments: tuple) -> bool:
    return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def killed_after(changes: int, folder: Path, call: Callable[[], object]) -> bool:
    """Make a call that is stopped after so many changes under `folder`. Returns True if it had more to do."""
    if not _hooked:  # a hook cannot be taken away again
        sys.addaudithook(_watch)
        _hooked.append(True)
    _watch.folder, _watch.at, _watch.count = str(folder), changes, 0
    try:
        call()
    except Killed:
        return True
    finally:
        _watch.folder = None
    return False
