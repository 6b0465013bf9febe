"""Reader of JSON lines (`*.jsonl`, `*.jsonl.gz`): documents, one {"text": …, "domain": …} a line, or the items of another parser.

A line that cannot be used is never repaired, guessed or moved to another domain: it becomes a `Rejected` with the file, the line's
number, the byte offset of its start (in the uncompressed stream) and the reason.
"""

from __future__ import annotations

import gzip
import json
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pangu_sigma.domains import Domains
from pangu_sigma.errors import DataError, argument

_Item = TypeVar("_Item")

Segments = tuple[tuple[str, str], ...]
"""(language, text) pairs of a document in the order of the sample; languages are those of `SIDES`, or "" if none was stated."""

SIDES = ("zh", "en")
"""Languages of the two sides of a bilingual document."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""UTF-8 byte order mark, removed from the start of a file."""

MAX_LINE_BYTES = 64 << 20
"""Maximum length of a line in bytes, about ten long novels. A longer line is a file without newlines, not a document."""

BROKEN_GZIP = "broken gzip stream"
"""Reason of the last `Rejected` of a truncated file."""
_SKIP_BYTES = 1 << 20
_SHOWN = 200
"""Maximum characters of a `Rejected.detail`: people read the quarantine."""
_OF_AN_ARRAY = "`jq -c '.[]' FILE > lines.jsonl` makes lines of an array"
_JSON_KINDS: dict[Any, str] = {
    **{dict: "an object", list: "a list", str: "a string", bool: "true or false"},
    **{int: "a number", float: "a number", type(None): "null or missing"},
}
"""Names of the kinds of JSON values for messages, in the order in which they are asked for: a bool is an int, too."""


@dataclass(frozen=True)
class Document:
    """Document of a domain. text: plain text, or the sides of a bilingual document. origin: file and offset, for messages."""

    domain: str
    text: str | Segments
    origin: str

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
    """Input line that cannot be used. line: number from 1. offset: bytes of the uncompressed file before the line. reason: one of a
    few fixed phrases, for counting. detail: description of this line."""

    file: str
    line: int
    offset: int
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} (byte {self.offset:,}): {self.detail}"


class RejectedLine(Exception):
    """Exception of a parser for a line that cannot be used; arguments: reason and detail, as in `Rejected`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail if len(detail) <= _SHOWN else f"{detail[:_SHOWN]}…")


def check_input(path: Path, option: str = "--input") -> None:
    """Raise DataError unless `path` ends in .jsonl or .jsonl.gz and is a regular file that can be opened.

    option: command-line option that gave the path, for the error.
    """
    option = argument(option)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise DataError(f"{option} {path}: the name must end in .jsonl or .jsonl.gz, one JSON object a line")
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):  # opening a pipe would wait, reading a device may never end
            path.open("rb").close()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{option} {path}: cannot be read: {why}; check the path") from error
    if not stat.S_ISREG(mode):
        raise DataError(f"{option} {path}: is not a file but a folder, a pipe or a device; write the text to a file")


def read_jsonl(
    path: Path,
    domains: Domains,
    progress: Callable[[int], object] = lambda _: None,
    begin: int = 0,
    end: int | None = None,
) -> Iterator[Document | Rejected]:
    """Yield the documents and the rejected lines of one file of documents, in order. See `read_lines` for arguments and errors."""
    return read_lines(path, lambda line, at: _document(line, domains, f"{path}:{at}"), progress, begin=begin, end=end)


def read_lines(
    path: Path,
    parse: Callable[[bytes, int], _Item],
    progress: Callable[[int], object] = lambda _: None,
    option: str = "--input",
    begin: int = 0,
    end: int | None = None,
) -> Iterator[_Item | Rejected]:
    """Yield, for each line of a file in order, the item that `parse` returns, or a `Rejected` if `parse` raises RejectedLine.

    parse: takes a line and its offset. progress: called with the number of bytes of each line. option: as in `check_input`.
    begin, end: offsets of lines, to read only those between them; line numbers then count from `begin`. None: to the last.
    Blank lines are skipped. A truncated gzip stream yields its whole lines, then one `Rejected`. Raises DataError if the file
    cannot be read, and if a gzip stream is damaged, because its lines may then be other text.
    """
    check_input(path, option)
    number, offset = 0, begin
    with _open(path) as file:
        file.seek(begin)
        while end is None or offset < max(end, 1):
            try:
                line, size = _line(file)
            except (EOFError, OSError, zlib.error) as error:
                yield _broken(path, number + 1, offset, error, option)
                return
            number += 1
            if not line:
                if not offset:
                    yield Rejected(str(path), 1, 0, "empty file", "there is no line in it")
                return
            content = line.removeprefix(BYTE_ORDER_MARK) if offset == 0 else line
            if content.strip():
                try:
                    if size > MAX_LINE_BYTES:
                        raise RejectedLine("line too long", f"{size:,} bytes; at most {MAX_LINE_BYTES:,} are read")
                    yield parse(content, offset)
                except RejectedLine as why:
                    reason, detail = why.args
                    yield Rejected(str(path), number, offset, reason, detail)
            offset += size
            progress(size)


def _line(file: BinaryIO) -> tuple[bytes, int]:
    """Read the next line and its size; only the beginning of a line over MAX_LINE_BYTES is kept, to bound memory."""
    line = rest = file.readline(MAX_LINE_BYTES + 1)
    size = len(line)
    while size > MAX_LINE_BYTES and rest and not rest.endswith(b"\n"):
        rest = file.readline(_SKIP_BYTES)
        size += len(rest)
    return line, size


def _broken(path: Path, line: int, offset: int, error: Exception, option: str) -> Rejected:
    """Return a `Rejected` for a truncated gzip stream. Raises DataError for every other failed read."""
    if isinstance(error, EOFError) or (isinstance(error, gzip.BadGzipFile) and "Not a gzipped file" in str(error)):
        plain = "" if offset or isinstance(error, EOFError) else "; if it is not compressed, name the file *.jsonl"
        return Rejected(str(path), line, offset, BROKEN_GZIP, f"{error}{plain}")
    if isinstance(error, gzip.BadGzipFile | zlib.error):
        raise DataError(
            f"{argument(option)} {path}: the gzip stream is damaged before byte {offset} of its text ({error}), so any line of it "
            "may be other text; copy the file again"
        ) from error
    raise DataError(f"{argument(option)} {path}: cannot be read at byte {offset}: {error}; check the disk") from error


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def json_object(line: bytes) -> dict[str, Any]:
    """Parse a line that is a JSON object. Raises RejectedLine for any other line."""
    try:
        record = json.loads(line.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        fix = "convert it with `iconv -f … -t UTF-8`, or name a compressed file *.jsonl.gz"
        raise RejectedLine("not UTF-8", f"byte {error.start} of the line: {error.reason}; {fix}") from None
    except (ValueError, RecursionError) as error:
        fix = _OF_AN_ARRAY if line.lstrip().startswith(b"[") else "a line holds a whole object, as `jq -c .` writes it"
        raise RejectedLine("not JSON", f"{error}; {fix}") from None
    if not isinstance(record, dict):
        fix = f"; {_OF_AN_ARRAY}" if isinstance(record, list) else ""
        raise RejectedLine("not a JSON object", f"the line holds {_kind_of(record)}{fix}")
    return record


def _kind_of(value: Any) -> str:
    return next(name for kind, name in _JSON_KINDS.items() if isinstance(value, kind))


def known_domain(name: Any, domains: Domains) -> str:
    """Check the domain `name` of a line and return it. Raises RejectedLine unless the configuration has this domain."""
    if not isinstance(name, str):
        raise RejectedLine("domain missing or not a string", f"domain is {name!r}")
    if name not in (domain.name for domain in domains):
        raise RejectedLine(
            "unknown domain", f"domain {name!r}; the configuration has {', '.join(d.name for d in domains)}"
        )
    return name


def _document(line: bytes, domains: Domains, origin: str) -> Document:
    record = json_object(line)
    check_unique_keys(record, ("domain", "text"))
    for key in ("domain", "text"):
        if key not in record:
            raise RejectedLine(
                f"{key} missing or not a string", f"no key {key!r}; the keys are {', '.join(map(repr, record))}"
            )
    name = known_domain(record.get("domain"), domains)
    value = record.get("text")
    if isinstance(value, dict) and domains.named(name).format == "bilingual":
        return Document(name, _sides(value), origin)
    return Document(name, visible_text(value, "text"), origin)


class _Doubled(dict[str, Any]):
    """JSON object with duplicate keys, of which it is unknown which value is meant. twice: those keys, sorted."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        seen = Counter(key for key, _ in pairs)
        self.twice = sorted(key for key, count in seen.items() if count > 1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    return record if len(record) == len(pairs) else _Doubled(pairs)


def check_unique_keys(value: Any, keys: tuple[str, ...]) -> None:
    """Raise RejectedLine if one of `keys` is duplicated in a JSON object; other keys are not read."""
    twice = [key for key in keys if isinstance(value, _Doubled) and key in value.twice]
    if twice:
        raise RejectedLine("a key twice", f"{twice[0]!r} stands more than once in an object")


def _sides(value: dict[str, Any]) -> Segments:
    check_unique_keys(value, SIDES)
    unknown = sorted(set(value) - set(SIDES))
    if unknown or not value:
        raise RejectedLine("wrong sides", f"text has the keys {sorted(value)}; allowed: {', '.join(SIDES)}")
    return tuple((language, visible_text(side, f"text.{language}")) for language, side in value.items())


def visible_text(value: Any, key: str) -> str:
    """Check the text under `key` of a line and return it. Raises RejectedLine unless it is Unicode with a visible character."""
    if not isinstance(value, str):
        raise RejectedLine("text missing or not a string", f"{key} is {_kind_of(value)}")
    if not any(character.isprintable() and not character.isspace() for character in value):
        raise RejectedLine("empty text", f"{key} has no visible character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RejectedLine("not Unicode text", f"{key} has half a surrogate pair at character {error.start}") from None
    return value
