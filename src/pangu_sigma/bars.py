"""Progress bars on standard error: bars in a terminal; in a file, lines that are at least ten seconds apart."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

_SECONDS = 10.0
"""Seconds between two lines of a bar in a file, and before its first: what takes less time needs no line."""


class Bar(tqdm):
    """Progress bar, with tqdm's arguments. quiet: True to show none, for the option --quiet."""

    quiet = False

    def __init__(self, *arguments: Any, disable: bool = False, **options: Any):
        self._in_file = not sys.stderr.isatty()
        if self._in_file:
            options = {"delay": _SECONDS, **options, "mininterval": _SECONDS, "miniters": 1, "file": _Lines()}
        super().__init__(*arguments, disable=disable or Bar.quiet, **options)

    def moveto(self, n: int) -> None:
        """Move the cursor to the line of the n-th nested bar; in a file, which has no cursor, do nothing."""
        if not self._in_file:
            super().moveto(n)


class _Lines:
    """Stream that writes each state of a bar as a line of standard error, without the characters that redraw a line."""

    def write(self, text: str) -> None:
        if state := text.strip():
            sys.stderr.write(f"{state}\n")

    def flush(self) -> None:
        sys.stderr.flush()
