"""A user's own text: `*.jsonl` or `*.jsonl.gz`, one {"text": …, "domain": …} a line, read into documents.

A line that cannot be used is never repaired, guessed or moved to another domain: it comes out as `Rejected`, with
the file, the byte offset of the line's start (in the uncompressed stream) and the reason.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pangu_sigma.domains import Domains
from pangu_sigma.errors import DataError

Segments = tuple[tuple[str, str], ...]
"""(language, text) pairs in the order they are written in the sample; languages are the keys of `SIDES`."""

SIDES = ("zh", "en")
"""Languages of the sides of a bilingual text."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Document:
    """A document of a domain. text: plain text, or the sides of a bilingual document."""

    domain: str
    text: str | Segments
    origin: str

    @property
    def segments(self) -> Segments:
        """The text as segments; plain text is one segment of language "" (none was stated)."""
        return (("", self.text),) if isinstance(self.text, str) else self.text

    @property
    def bytes(self) -> int:
        """Length of the text in bytes of UTF-8."""
        return sum(len(text.encode()) for _, text in self.segments)


@dataclass(frozen=True)
class Rejected:
    """A quarantined line. `reason` is one of a few fixed sentences, to be counted; `detail` is for the reader."""

    file: str
    offset: int
    reason: str
    detail: str


class _Unusable(Exception):
    """The line is rejected; arguments: reason and detail, as in `Rejected`."""


def read_jsonl(path: Path, domains: Domains) -> Iterator[Document | Rejected]:
    """Documents and rejected lines of one file, in order.

    Blank lines are skipped. A gzip stream that ends or breaks in the middle gives its whole lines, then one `Rejected`.
    Raises DataError when the file cannot be opened or is not named `*.jsonl` or `*.jsonl.gz`.
    """
    offset = 0
    with _open(path) as file:
        while True:
            try:
                line = file.readline()
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                yield Rejected(str(path), offset, "broken gzip stream", str(error))
                return
            if not line:
                return
            content = line.removeprefix(BYTE_ORDER_MARK) if offset == 0 else line
            if content.strip():
                try:
                    yield _document(content, domains, f"{path}:{offset}")
                except _Unusable as why:
                    reason, detail = why.args
                    yield Rejected(str(path), offset, reason, detail)
            offset += len(line)


def _open(path: Path) -> BinaryIO:
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise DataError(f"--input {path}: the name must end in .jsonl or .jsonl.gz, one JSON object a line")
    try:
        return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise DataError(f"--input {path}: cannot be read: {error.strerror}; check the path") from error


def _document(line: bytes, domains: Domains, origin: str) -> Document:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _Unusable("not UTF-8", f"byte {error.start} of the line: {error.reason}") from None
    except (ValueError, RecursionError) as error:
        raise _Unusable("not JSON", str(error)) from None
    if not isinstance(record, dict):
        raise _Unusable("not a JSON object", f"the line holds a {type(record).__name__}")
    name = record.get("domain")
    if not isinstance(name, str):
        raise _Unusable("domain missing or not a string", f"domain is {name!r}")
    if name not in (domain.name for domain in domains):
        raise _Unusable(
            "unknown domain", f"domain {name!r}; the configuration has {', '.join(d.name for d in domains)}"
        )
    value = record.get("text")
    if isinstance(value, dict) and domains.named(name).format == "bilingual":
        return Document(name, _sides(value), origin)
    return Document(name, _text(value, "text"), origin)


def _sides(value: dict[str, Any]) -> Segments:
    unknown = sorted(set(value) - set(SIDES))
    if unknown or not value:
        raise _Unusable("wrong sides", f"text has the keys {sorted(value)}; allowed: {', '.join(SIDES)}")
    return tuple((language, _text(side, f"text.{language}")) for language, side in value.items())


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise _Unusable("text missing or not a string", f"{key} is a {type(value).__name__}")
    if not value.strip():
        raise _Unusable("empty text", f"{key} has no visible character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Unusable("not Unicode text", f"{key} has half a surrogate pair at character {error.start}") from None
    return value
