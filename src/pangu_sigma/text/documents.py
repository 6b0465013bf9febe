"""Documents, and input lines that cannot be used.

A line that cannot be used is never repaired, guessed or moved to another domain: it becomes a `Rejected` with the file, the line's
number, the byte offset of its start (in the uncompressed stream) and the reason. An element of a JSON array and a row of a Parquet
file count as lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Segments = tuple[tuple[str, str], ...]
"""(language, text) pairs of a document in the order of the sample; a language is one of `SIDES`, or "" if none was stated."""

SIDES = ("zh", "en")
"""Languages of the two sides of a bilingual document."""

HALF_PAIR = re.compile("[\ud800-\udfff]")
"""Pattern of half of a surrogate pair, as which Python reads a byte of a file or an argument that is no UTF-8."""

MAX_LINE_BYTES = 64 << 20
"""Maximum length of a line in bytes, about ten long novels. A longer line is a file without newlines, not a document."""
_DETAIL_LENGTH = 200
"""Maximum characters of a `Rejected.detail`: people read the quarantine."""


@dataclass(frozen=True)
class Document:
    """Document of a domain. text: plain text, or the sides of a bilingual document."""

    domain: str
    text: str | Segments

    @property
    def segments(self) -> Segments:
        """Text as pairs (language, text); plain text is one pair, of language ""."""
        return (("", self.text),) if isinstance(self.text, str) else self.text

    @property
    def bytes(self) -> int:
        """Length of the text in bytes of UTF-8."""
        return sum(len(text.encode()) for _, text in self.segments)


@dataclass(frozen=True)
class Rejected:
    """Input line that cannot be used. line: number from 1. offset: bytes of the uncompressed file before the line, or rows of a
    Parquet file. reason: one of a few fixed phrases, for counting. detail: description of this line."""

    file: str
    line: int
    offset: int
    reason: str
    detail: str

    def __str__(self) -> str:
        place = f"row {self.offset + 1:,}" if self.file.endswith(".parquet") else f"byte {self.offset:,}"
        return f"{self.file}:{self.line} ({place}): {self.detail}"


class RejectedLine(Exception):
    """Exception of a parser for a line that cannot be used; arguments: reason and detail, as in `Rejected`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail if len(detail) <= _DETAIL_LENGTH else f"{detail[:_DETAIL_LENGTH]}…")

    @classmethod
    def too_long(cls, size: int, unit: str = "") -> RejectedLine:
        """Return the exception for a line, or texts of a row, of `size` bytes. unit: words behind that number."""
        return cls("line too long", f"{size:,} bytes{unit}; at most {MAX_LINE_BYTES:,} are read")


Row = tuple[int, bytes | dict[str, Any] | RejectedLine | None]
"""Offset of a line of a file (`Rejected.offset`) and its content: JSON or a record; None if blank; or the exception that says why
this line, or the file from it on, cannot be used."""
Item = TypeVar("Item")


def items_of(path: Path, rows: Iterable[Row], parse: Callable[[Any], Item]) -> Generator[Item | Rejected, None, int]:
    """Yield `parse(content)` of each row of a file that is not blank, or a `Rejected` if `parse` raises RejectedLine. Return the
    number of rows, blank ones included."""
    number = 0
    for number, (offset, content) in enumerate(rows, 1):
        try:
            if isinstance(content, RejectedLine):
                raise content
            if content is not None:
                yield parse(content)
        except RejectedLine as rejection:
            # a file of blank lines is rejected after them, with offset 0: as line 1
            yield Rejected(str(path), number if offset else 1, offset, *rejection.args)
    return number
