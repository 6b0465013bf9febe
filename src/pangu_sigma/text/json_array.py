"""Reader of a JSON array of objects, as WuDaoCorpora is published, in bounded memory: one element at a time, on one line or many.

The end of an element is found by counting brackets outside of strings, which knows nothing else of JSON; then the element is parsed
as a line is. So an element that is not JSON costs no other, unless its brackets or quotation marks do not match.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from pangu_sigma.text.documents import MAX_LINE_BYTES, Rejected, RejectedLine
from pangu_sigma.text.json_lines import LineItem, lines_between
from pangu_sigma.text.streams import BYTE_ORDER_MARK, UNREADABLE, broken_stream, open_stream

CUT_ARRAY = "cut JSON array"
"""Reason of the last `Rejected` of an array without its closing bracket."""

_BLOCK_BYTES = 1 << 14
"""Bytes read at once. What a compressed stream holds of a block that is cut off is lost, so blocks are small."""
_BLANKS = b" \t\r\n"
_BACKSLASH = ord("\\")
_OUTSIDE, _INSIDE = re.compile(rb'["\[\]{},]'), re.compile(rb'["\[\]{}]')
"""What matters between elements, and inside of one."""


def read_array(path: Path, parse: Callable[[bytes, int], LineItem]) -> Generator[LineItem | Rejected, None, int]:
    """Yield, for each element of the array in a file, what `parse` makes of it, or a `Rejected`. Return the number of elements.

    parse: takes an element and its offset. `Rejected.line` is the number of the element.
    A file that begins with an object is read as JSON lines, which many publish under this name. A truncated array yields its whole
    elements, then one `Rejected`. Raises DataError as `lines_between` does.
    """
    with open_stream(path) as file:
        try:
            start, first = _first(file)
        except UNREADABLE as error:
            yield broken_stream(path, 1, 0, error)
            return 0
        if first == b"[":
            return (yield from _items(path, file, start, parse))
    if first == b"{":
        return (yield from lines_between(path, 0, None, parse))
    if first:
        detail = f"the file begins with {first!r}, not with '['; it must be UTF-8, and hold an array of objects"
        yield Rejected(str(path), 1, start, "not a JSON array", detail)
    else:
        yield Rejected(
            str(path), 1, 0, "empty file", "there are only blanks in it" if start else "there is nothing in it"
        )
    return 0


def _items(
    path: Path, file: BinaryIO, start: int, parse: Callable[[bytes, int], LineItem]
) -> Generator[LineItem | Rejected, None, int]:
    """Yield as `read_array` does. file: after the opening bracket. start: offset of the opening bracket."""
    number, elements = 0, _Elements(file, start + 1)
    try:
        for content, offset, size in elements:
            if not number and elements.closed and not content:
                yield Rejected(str(path), 1, start, "empty file", "there is no element in the array")
                continue
            number += 1
            try:
                if size > MAX_LINE_BYTES:
                    raise RejectedLine("line too long", f"{size:,} bytes; at most {MAX_LINE_BYTES:,} are read")
                yield parse(content, offset)
            except RejectedLine as why:
                yield Rejected(str(path), number, offset, *why.args)
        if not elements.closed:
            detail = f"the array has no end; its last {elements.left:,} bytes are no whole element"
            yield Rejected(str(path), number + 1, elements.offset, CUT_ARRAY, detail)
        elif (more := _after(file, elements)) is not None:
            detail = "what follows the end of the array is not read; join arrays with `jq -c '.[]' FILE > lines.jsonl`"
            yield Rejected(str(path), number + 1, more, "not a JSON array", detail)
    except UNREADABLE as error:
        yield broken_stream(path, number + 1, elements.offset, error)
    return number


class _Elements:
    """Elements of an array: for each its bytes without blanks around it, its offset and its size.

    file: stream after the opening bracket, at `offset`. Of an element over MAX_LINE_BYTES the bytes are not kept.
    closed: True after the array's end. offset: of the next element, blanks before it included. left: bytes after it, if not closed.
    """

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self.offset, self.left, self.closed = offset, 0, False
        self.block = bytearray()
        self._file, self._depth, self._in_string = file, 0, False

    def __iter__(self) -> Iterator[tuple[bytes, int, int]]:
        at = dropped = 0
        while not self.closed:
            at, ended = self._scan(at)
            if ended:
                content = bytes(self.block[:at])
                stripped = content.lstrip(_BLANKS)
                blanks = 0 if dropped else len(content) - len(stripped)
                offset, size = self.offset + blanks, dropped + len(content) - blanks
                self.closed = self.block[at] == ord("]")
                self.offset += dropped + at + 1
                del self.block[: at + 1]
                at = dropped = 0
                yield stripped.rstrip(_BLANKS), offset, size
                continue
            if len(self.block) > MAX_LINE_BYTES:
                kept = _backslashes(self.block, at) % 2  # it escapes what comes next
                dropped += at - kept
                del self.block[: at - kept]
                at = kept
            more = self._file.read1(_BLOCK_BYTES)  # type: ignore[attr-defined]
            if not more:
                self.left = dropped + len(self.block)
                return
            self.block += more

    def _scan(self, at: int) -> tuple[int, bool]:
        """Go on through the block from `at`. Return where it stopped, and True if the element ends there."""
        block = self.block
        while at < len(block):
            if self._in_string:
                quote = block.find(b'"', at)
                if quote < 0:
                    return len(block), False
                self._in_string, at = _backslashes(block, quote) % 2 == 1, quote + 1
                continue
            found = (_INSIDE if self._depth else _OUTSIDE).search(block, at)
            if found is None:
                return len(block), False
            at, mark = found.end(), found[0]
            if mark == b'"':
                self._in_string = True
            elif mark in b"[{":
                self._depth += 1
            elif self._depth:
                self._depth -= 1
            elif mark in b",]":
                return at - 1, True
        return at, False


def _backslashes(block: bytearray, at: int) -> int:
    """Return the number of backslashes right before `at`."""
    first = at
    while first and block[first - 1] == _BACKSLASH:
        first -= 1
    return at - first


def _first(file: BinaryIO) -> tuple[int, bytes]:
    """Read to the first byte that is no blank, a byte order mark left out. Return its offset and the byte, b"" if there is none."""
    offset = 0
    while (byte := file.read(1)) and (byte in _BLANKS or (not offset and byte == BYTE_ORDER_MARK[:1])):
        offset += 1
        if byte not in _BLANKS:
            if (rest := file.read(2)) != BYTE_ORDER_MARK[1:]:
                return 0, byte + rest
            offset += 2
    return offset, byte


def _after(file: BinaryIO, elements: _Elements) -> int | None:
    """Read to the end of the file, so that its checksum is verified. Return the offset of what is there and no blank."""
    offset, found = elements.offset, None
    for block in chain([bytes(elements.block)], iter(partial(file.read1, _BLOCK_BYTES), b"")):  # type: ignore[attr-defined]
        if found is None and block.strip(_BLANKS):
            found = offset + len(block) - len(block.lstrip(_BLANKS))
        offset += len(block)
    return found
