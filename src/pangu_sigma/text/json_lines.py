"""Reader of JSON lines: the items that a parser makes of the lines of a file, or of those between two offsets of a plain file."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import BinaryIO, TypeVar

from pangu_sigma.errors import DataError, argument
from pangu_sigma.text.documents import MAX_LINE_BYTES, Rejected, RejectedLine
from pangu_sigma.text.streams import BYTE_ORDER_MARK, broken_stream, open_stream

LineItem = TypeVar("LineItem")

_SKIP_BYTES = 1 << 20


def lines_between(
    path: Path,
    begin: int,
    end: int | None,
    parse: Callable[[bytes, int], LineItem],
    progress: Callable[[int], object] = lambda _: None,
    option: str = "--input",
) -> Generator[LineItem | Rejected, None, int]:
    """Yield, for each line in order, the item that `parse` returns, or a `Rejected` if `parse` raises RejectedLine. Return the
    number of lines.

    begin, end: offsets of line ends of a plain file; 0 and None: the whole file. parse: takes a line and its offset. progress:
    called with the number of bytes of each line. option: as in `check_input`.
    Blank lines are skipped. A truncated stream yields its whole lines, then one `Rejected`. Raises DataError if the file cannot be
    read, if a compressed stream is damaged, because its lines may then be other text, and if the file ends before `end`.
    """
    number, offset, blank = 0, begin, True
    with open_stream(path) as file:
        if begin:
            file.seek(begin)
        while end is None or offset < end:
            try:
                line, size = _line(file)
            except OSError as error:
                yield broken_stream(path, number + 1, offset, error, option)
                return number
            if not line:
                break
            number += 1
            content = line.removeprefix(BYTE_ORDER_MARK) if offset == 0 else line
            if content.strip():
                blank = False
                try:
                    if size > MAX_LINE_BYTES:
                        raise RejectedLine("line too long", f"{size:,} bytes; at most {MAX_LINE_BYTES:,} are read")
                    yield parse(content, offset)
                except RejectedLine as why:
                    yield Rejected(str(path), number, offset, *why.args)
            offset += size
            progress(size)
        whole = not begin and (end is None or not file.read(1))
    if end is not None and offset < end:
        raise DataError(
            f"{argument(option)} {path}: was changed while it was read: it ends at byte {offset}, not at {end}"
        )
    if blank and whole:
        yield Rejected(
            str(path), 1, 0, "empty file", "there are only blanks in it" if offset else "there is no line in it"
        )
    return number


def _line(file: BinaryIO) -> tuple[bytes, int]:
    """Read the next line and its size; only the beginning of a line over MAX_LINE_BYTES is kept, to bound memory."""
    line = rest = file.readline(MAX_LINE_BYTES + 1)
    size = len(line)
    while size > MAX_LINE_BYTES and rest and not rest.endswith(b"\n"):
        rest = file.readline(_SKIP_BYTES)
        size += len(rest)
    return line, size


def line_ends(path: Path, total: int, size: int) -> list[int]:
    """Return the offsets at which a plain file is cut: 0, after the first line end at each multiple of `size`, and `total`.

    total: bytes of the file. Each byte is read at most once, so a line longer than `size` costs no more than others.
    """
    ends = [0]
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
