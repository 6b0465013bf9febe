"""Documents, input lines that cannot be used, and the checks of one line.

A line that cannot be used is never repaired, guessed or moved to another domain: it becomes a `Rejected` with the file, the line's
number, the byte offset of its start (in the uncompressed stream) and the reason. An element of a JSON array and a row of a Parquet
file count as lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as _shown  # of a nested value the beginning
from typing import Any, TypeVar

from pangu_sigma.domains import Domains

Segments = tuple[tuple[str, str], ...]
"""(language, text) pairs of a document in the order of the sample; a language is one of `SIDES`, or "" if none was stated."""

SIDES = ("zh", "en")
"""Languages of the two sides of a bilingual document."""

MAX_LINE_BYTES = 64 << 20
"""Maximum length of a line in bytes, about ten long novels. A longer line is a file without newlines, not a document."""
_DETAIL_LENGTH = 200
"""Maximum characters of a `Rejected.detail`: people read the quarantine."""
_ARRAY_ADVICE = "`jq -c '.[]' FILE > lines.jsonl` makes lines of an array"


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
    for number, (offset, row) in enumerate(rows, 1):
        try:
            if isinstance(row, RejectedLine):
                raise row
            if row is not None:
                yield parse(row)
        except RejectedLine as why:
            yield Rejected(str(path), number if offset else 1, offset, *why.args)  # of blank lines the first
    return number


def json_object(line: bytes) -> dict[str, Any]:
    """Parse a line with a JSON object. Raises RejectedLine for any other line."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        fix = "convert it with `iconv -f … -t UTF-8`, or name a compressed file *.jsonl.gz"
        raise RejectedLine("not UTF-8", f"byte {error.start} of the line: {error.reason}; {fix}") from None
    except (ValueError, RecursionError) as error:
        fix = _ARRAY_ADVICE if line.lstrip().startswith(b"[") else "a line holds a whole object, as `jq -c .` writes it"
        raise RejectedLine("not JSON", f"{error}; {fix}") from None
    if not isinstance(value, dict):
        fix = f"; {_ARRAY_ADVICE}" if isinstance(value, list) else ""
        raise RejectedLine("not a JSON object", f"the line holds {_shown(value)}{fix}")
    return value


def known_domain(name: Any, domains: Domains) -> str:
    """Check the domain `name` of a line and return it. Raises RejectedLine unless the configuration has this domain."""
    if not isinstance(name, str):
        raise RejectedLine("domain missing or not a string", f"domain is {_shown(name)}")
    if name not in (domain.name for domain in domains):
        raise RejectedLine(
            "unknown domain",
            f"domain {name!r}; text is prepared for {', '.join(d.name for d in domains)}; data.domain_of says the domain of "
            "a file, a reader that of a record",
        )
    return name


def text_sides(value: dict[str, Any] | list[Any]) -> Segments:
    """Check the sides of a bilingual document, one object or a list of some, and return them. Raises RejectedLine for other keys,
    and as `visible_text` does."""
    pairs: list[Any] = value if isinstance(value, list) and value else [value]
    for pair in pairs:
        if not isinstance(pair, dict) or not pair or not pair.keys() <= {*SIDES}:
            raise RejectedLine("wrong sides", f"a pair has the keys {', '.join(SIDES)}; this is {_shown(pair)}")
    return tuple((side, visible_text(text, f"text.{side}")) for pair in pairs for side, text in pair.items())


def visible_text(value: Any, key: str) -> str:
    """Check the text under `key` of a line and return it. Raises RejectedLine unless it is Unicode with a visible character."""
    if not isinstance(value, str):
        raise RejectedLine(
            "text missing or not a string", f"{key} is {'null or missing' if value is None else _shown(value)}"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RejectedLine("not Unicode text", f"{key} has half a surrogate pair at character {error.start}") from None
    if not any(character.isprintable() and not character.isspace() for character in value):
        raise RejectedLine("empty text", f"{key} has no visible character")
    return value
