"""Reader of a JSON array of objects, as WuDaoCorpora is published, in bounded memory: one element at a time, on one line or many.

Python's parser finds the end of an element. So what is no JSON ends the reading of its file, and it is said how much is not read.
"""

from __future__ import annotations

import json
import re
from codecs import getincrementaldecoder
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from pangu_sigma.text.documents import MAX_LINE_BYTES, Rejected, RejectedLine, json_value
from pangu_sigma.text.json_lines import LineItem, lines_between
from pangu_sigma.text.streams import broken_stream, open_stream

_BLOCK_BYTES = 1 << 18
"""Bytes read at once, at least."""
_BLANKS = re.compile("[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_NUMBER_GOES_ON = ("", ".", "e", "E", "e+", "e-", "E+", "E-")
"""What the text may end with, behind a number that is whole so far, and of which the next block has more."""


def read_array(path: Path, parse: Callable[[Any, int], LineItem]) -> Generator[LineItem | Rejected, None, int]:
    """Yield, for each element of the array in a file, what `parse` makes of it, or a `Rejected`. Return the number of elements.

    parse: takes an element and its offset. `Rejected.line` is the number of the element.
    A file that begins with an object is read as JSON lines, which many publish under this name. What is no JSON ends the elements
    with one `Rejected`. Raises DataError as `lines_between` does.
    """
    number = 0
    with open_stream(path) as file:
        elements = _Elements(file)
        try:
            if elements.peek() == "{":
                as_lines = lines_between(path, 0, None, lambda line, at: parse(json_value(line), at))
                return (yield from as_lines)
            for value, offset in elements:
                number += 1
                try:
                    if (size := elements.offset - offset) > MAX_LINE_BYTES:
                        raise RejectedLine("line too long", f"{size:,} bytes; at most {MAX_LINE_BYTES:,} are read")
                    yield parse(value, offset)
                except RejectedLine as why:
                    yield Rejected(str(path), number, offset, *why.args)
        except RejectedLine as why:
            yield Rejected(str(path), number + 1, elements.offset, *why.args)
        except OSError as error:
            yield broken_stream(path, number + 1, elements.offset, error)
    return number


class _Elements:
    """Elements of the array in a stream, each with its offset. offset: bytes before what comes next.

    Bytes that are not UTF-8 become half surrogate pairs, which text may not have. Raises RejectedLine for what is no array.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.offset = self._at = 0
        self._file, self._utf8 = file, getincrementaldecoder("utf-8")("surrogateescape")
        self._text, self._ended = "", False

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        if (mark := self.peek()) != "[":
            if not mark:
                blanks, self.offset = self.offset, 0
                self._end("empty file", "there are only blanks in it" if blanks else "there is nothing in it")
            self._end("not a JSON array", f"the file begins with {mark!r}, not with '['; it must be UTF-8")
        self._go(self._at + 1)
        if self.peek() == "]":
            self._end("empty file", "there is no element in the array")
        while mark != "]":
            self.peek()
            offset = self.offset
            yield self._value(), offset
            mark = self.peek()
            if mark not in (",", "]"):
                self._end("not JSON", f"',' or ']' expected, not {mark!r}" if mark else "the array has no end")
            self._go(self._at + 1)
        if self.peek():
            self._end("not a JSON array", "join arrays with `jq -c '.[]' FILE > lines.jsonl`")

    def peek(self) -> str:
        """Go to the next character that is no blank, and return it; "" at the end of the file."""
        while True:
            blanks = _BLANKS.match(self._text, self._at)
            assert blanks is not None, "none match, too"
            mark = not self.offset and self._text.startswith("\ufeff")
            self._go(blanks.end() + mark)
            if not mark and (self._at < len(self._text) or self._ended):
                return self._text[self._at : self._at + 1]
            self._more()

    def _value(self) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                if self._ended or self._text[end : end + 3] not in _NUMBER_GOES_ON:  # the longest has 2
                    self._go(end)
                    return value
            except (ValueError, RecursionError) as error:
                said = getattr(error, "msg", str(error))
                if isinstance(error, RecursionError) or self._ended:
                    self._end("not JSON", said)
                if len(self._text) - self._at > MAX_LINE_BYTES:
                    self._end("not JSON", f"{said}, or an element is longer than {MAX_LINE_BYTES:,} bytes")
            self._more()

    def _go(self, at: int) -> None:
        self.offset += len(self._text[self._at : at].encode("utf-8", "surrogateescape"))
        self._at = at

    def _more(self) -> None:
        """Read on: as much again as is there, so that a long element is not parsed often."""
        self._text, self._at, size, blocks = self._text[self._at :], 0, 0, list[bytes]()
        try:
            while size <= max(len(self._text), _BLOCK_BYTES) and (block := self._file.read1(_BLOCK_BYTES)):  # type: ignore[attr-defined]
                blocks.append(block)
                size += len(block)
        except OSError:
            if not blocks:  # else the next call raises it
                raise
        self._text += self._utf8.decode(b"".join(blocks), final=not blocks)
        self._ended = not blocks

    def _end(self, reason: str, detail: str) -> NoReturn:
        """Read to the end, so that a checksum is verified. Raises RejectedLine with the number of bytes that are not used."""
        there = self._text[self._at :].encode("utf-8", "surrogateescape")
        left = len(there) + sum(map(len, iter(partial(self._file.read, _BLOCK_BYTES), b"")))
        raise RejectedLine(reason, f"{detail}; {left:,} bytes from here on are not read" if left else detail)
