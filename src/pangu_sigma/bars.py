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
        if not sys.stderr.isatty():  # a file: the caller may set the delay of the first line, and no other time
            options = {"delay": _SECONDS, **options, "mininterval": _SECONDS, "miniters": 1, "file": _Lines()}
        super().__init__(*arguments, disable=disable or Bar.quiet, **options)


class _Lines:
    """Stream that writes each state of a bar as a line of standard error, without the characters that move a terminal's cursor."""

    def write(self, text: str) -> None:
        if state := text.replace("\x1b[A", "").strip():  # cursor up, of a nested bar
            sys.stderr.write(f"{state}\n")
