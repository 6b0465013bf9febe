"""Reader of benchmark files of JSON lines, which skips and reports lines that cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pangu_sigma.errors import DataError
from pangu_sigma.text.documents import Rejected, RejectedLine, json_object
from pangu_sigma.text.json_lines import read_lines
from pangu_sigma.text.streams import BROKEN_STREAMS

logger = logging.getLogger(__name__)

TaskLine = dict[str, Any]
"""JSON object in a line of a benchmark's file."""
FieldKind = type[str] | type[int] | type[list]
"""Required type of a field in a benchmark's file: a text, a whole number, or a list of texts."""

_EXPECTED = {str: "a text", int: "a whole number", list: "a list of texts"}
_TOLD = 5
"""Number of skipped lines that a warning explains."""


def task_file(folder: Path, names: Sequence[str], published: str) -> Path:
    """Return the path of a benchmark's file: the first of `names` that the folder has. Raises DataError, naming the download page,
    `published`, if it has none."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    others = f" (or {', '.join(names[1:])})" if names[1:] else ""
    raise DataError(f"{folder / names[0]}{others} is not there; get it from {published}")


def read_rows(
    path: Path, fields: Mapping[str, FieldKind], key: str | None = None, check: Callable[[TaskLine], str] = lambda _: ""
) -> tuple[list[TaskLine], int]:
    """Read the items of a benchmark's file (*.jsonl, *.jsonl.gz), and count unusable lines; a warning explains them.

    fields: required fields and their types. key: field whose values must be unique. check: returns another fault of an item, or "".
    Blank lines are ignored. Raises DataError if no line can be used, and for an unreadable file.
    """
    rows, faults, seen = list[TaskLine](), list[str](), set[Any]()

    def parse(line: bytes, offset: int) -> TaskLine:
        row = json_object(line)
        if fault := _fault(row, fields) or check(row):
            raise RejectedLine("unusable", fault)
        if key is not None:
            if row[key] in seen:
                raise RejectedLine("again", f"{key}: another one in each line expected, found {row[key]!r} again")
            seen.add(row[key])
        return row

    for item in read_lines(path, parse, option="--files"):
        if isinstance(item, Rejected):
            if item.reason in BROKEN_STREAMS.values():
                raise DataError(f"{path}: cannot be read: {item.detail}; get the file again")
            faults.append(f"{path}:{item.line}: {item.detail}")
        else:
            rows.append(item)
    warn_skipped(path, faults, len(rows))
    return rows, len(faults)


def warn_skipped(path: Path, faults: Sequence[str], usable: int) -> None:
    """Warn about skipped lines of a benchmark's file. faults: a text for each such line. Raises DataError if no line is usable."""
    shown = "; ".join(faults[:_TOLD]) + (f"; and {len(faults) - _TOLD} more" if len(faults) > _TOLD else "")
    if not usable:
        raise DataError(f"{path} has no line that can be used: {shown or 'it is empty'}")
    if faults:
        logger.warning("%d of %d lines are skipped: %s", len(faults), len(faults) + usable, shown)


def _fault(row: TaskLine, fields: Mapping[str, FieldKind]) -> str:
    """Return which field is missing or of another type, or ""."""
    for name, kind in fields.items():
        if name not in row:
            return f"a field {name}, {_EXPECTED[kind]}, expected; found {_shown(list(row))}"
        if not _is(row[name], kind):
            return f"{name}: {_EXPECTED[kind]} expected, found {_shown(row[name])}"
    return ""


def _is(value: Any, kind: FieldKind) -> bool:
    if kind is list:
        return isinstance(value, list) and all(_is(each, str) for each in value)
    if kind is str:
        return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
