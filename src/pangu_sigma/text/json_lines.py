"""Reader of JSON lines: the lines of a file, or of a part of a plain file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pangu_sigma.errors import DataError, argument
from pangu_sigma.text.documents import MAX_LINE_BYTES, RejectedLine, Row
from pangu_sigma.text.streams import BYTE_ORDER_MARK, broken_stream, open_stream

_SKIP_BYTES = 1 << 20


def json_lines(path: Path, begin: int = 0, end: int | None = None, option: str = "--input") -> Iterator[Row]:
    """Yield the lines of a file. begin, end: offsets of line ends of a plain file. option: as in `check_input`.

    Raises DataError if the file cannot be read, if a compressed stream is damaged, because its lines may then be other text, and
    if the file ends before `end`.
    """
    offset, blank = begin, True
    with open_stream(path) as file:
        if begin:
            file.seek(begin)
        while end is None or offset < end:
            try:
                line, size = _line(file)
            except OSError as error:
                yield offset, broken_stream(path, offset, error, option)
                return
            if not line:
                break
            content = line if offset else line.removeprefix(BYTE_ORDER_MARK)
            if content.strip():
                blank = False
                yield offset, content if size <= MAX_LINE_BYTES else RejectedLine.too_long(size)
            else:
                yield offset, None
            offset += size
        whole = not begin and (end is None or not file.read(1))
    if end is not None and offset < end:
        raise DataError(
            f"{argument(option)} {path}: was changed while it was read: it ends at byte {offset}, not at {end}"
        )
    if blank and whole:
        yield 0, RejectedLine("empty file", f"there {'are only blanks' if offset else 'is no line'} in it")


def _line(file: BinaryIO) -> tuple[bytes, int]:
    """Read the next line and its size; only the beginning of a line over MAX_LINE_BYTES is kept, to bound memory."""
    line = rest = file.readline(MAX_LINE_BYTES + 1)
    size = len(line)
    while size > MAX_LINE_BYTES and rest and not rest.endswith(b"\n"):
        rest = file.readline(_SKIP_BYTES)
        size += len(rest)
    return line, size


def line_ends(path: Path, size: int) -> list[int]:
    """Return the offsets at which a plain file is cut: 0, after the first line end at each multiple of `size`, and its own size.

    Each byte is read at most once, so a line longer than `size` costs no more than others.
    """
    ends, total = [0], path.stat().st_size
    with path.open("rb") as file:
        while (multiple := (ends[-1] // size + 1) * size) < total:
            file.seek(multiple - 1)
            found = multiple - 1
            while (text := file.readline(_SKIP_BYTES)) and not text.endswith(b"\n"):
                found += len(text)
            found += len(text)
            if found >= total:
                break
            ends.append(found)
    return [*ends, total]
