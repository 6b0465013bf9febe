"""Reader of a JSON array of objects, as WuDaoCorpora is published, in bounded memory: one element at a time, on one line or many.

Python's parser finds the end of an element. So what is no JSON ends the reading of its file, and it is said how much is not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, NoReturn

from pangu_sigma.text.documents import MAX_LINE_BYTES, RejectedLine, Row
from pangu_sigma.text.json_lines import json_lines
from pangu_sigma.text.streams import BYTE_ORDER_MARK, broken_stream, open_stream

_BLOCK_BYTES = 1 << 18
"""Bytes read at once, at least."""
_BLANKS = re.compile("[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def json_array(path: Path) -> Iterator[Row]:
    """Yield the elements of the array in a file.

    A file that begins with an object is read as JSON lines, which many publish under this name. What is no JSON ends the
    elements, and is the last one. Raises DataError as `json_lines`.
    """
    with open_stream(path) as file:
        elements = _Elements(file)
        try:
            yield from json_lines(path) if elements.peek() == "{" else elements
        except OSError as error:
            yield elements.offset, broken_stream(path, elements.offset, error)
        except RejectedLine as why:
            yield elements.offset, why


class _Elements:
    """Elements of the array in a stream, as its bytes. These are parsed as Latin-1: whatever they spell, an element ends there."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._text, self._before, self._at, self._ended = file, "", 0, 0, False

    @property
    def offset(self) -> int:
        """Number of bytes before what comes next."""
        return self._before + self._at

    def __iter__(self) -> Iterator[Row]:
        if not (mark := self.peek()):
            yield 0, RejectedLine("empty file", f"there {'are only blanks' if self.offset else 'is nothing'} in it")
            return
        if mark != "[":
            self._end("not a JSON array", f"the file begins with {mark!a}, not with '['; it must be UTF-8")
        self._at += 1
        if self.peek() == "]":
            self._end("empty file", "there is no element in the array")
        while mark != "]":
            self.peek()
            yield self.offset, self._element()
            mark = self.peek()
            if mark not in (",", "]"):
                self._end("not JSON", f"',' or ']' expected, not {mark!a}" if mark else "the array has no end")
            self._at += 1
        if self.peek():
            self._end("not a JSON array", "join arrays with `jq -c '.[]' FILE > lines.jsonl`")

    def peek(self) -> str:
        """Go to the next character that is no blank, and return it; "" at the end of the file."""
        while True:
            marked = not self.offset and self._text.startswith(BYTE_ORDER_MARK.decode("latin-1"))
            blanks = _BLANKS.match(self._text, len(BYTE_ORDER_MARK) if marked else self._at)
            assert blanks is not None, "none match, too"
            self._at = blanks.end()
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def _element(self) -> bytes | RejectedLine:
        while True:
            try:
                end = _DECODER.raw_decode(self._text, self._at)[1]
                if self._ended or end + 2 < len(self._text):  # else a number may go on
                    element, self._at = self._text[self._at : end].encode("latin-1"), end
                    return element if len(element) <= MAX_LINE_BYTES else RejectedLine.too_long(len(element))
            except (ValueError, RecursionError) as error:
                said = getattr(error, "msg", str(error))
                if isinstance(error, RecursionError) or self._ended:
                    self._end("not JSON", said)
                if len(self._text) - self._at > MAX_LINE_BYTES:
                    self._end("not JSON", f"{said}, or an element is longer than {MAX_LINE_BYTES:,} bytes")
            self._more()

    def _more(self) -> None:
        """Read on: as much again as is there, so that a long element is not parsed often."""
        self._before, self._text, self._at, size, blocks = self.offset, self._text[self._at :], 0, 0, list[bytes]()
        least = max(len(self._text), _BLOCK_BYTES, len(BYTE_ORDER_MARK))
        try:
            while size < least and (block := self._file.read1(_BLOCK_BYTES)):  # type: ignore[attr-defined]
                blocks.append(block)
                size += len(block)
        except OSError:
            if not blocks:  # else the next call raises it
                raise
        self._text += b"".join(blocks).decode("latin-1")
        self._ended = not blocks

    def _end(self, reason: str, detail: str) -> NoReturn:
        """Read to the end, so that a checksum is verified. Raises RejectedLine with the number of bytes that are not used."""
        left = len(self._text) - self._at + sum(map(len, iter(partial(self._file.read, _BLOCK_BYTES), b"")))
        raise RejectedLine(reason, f"{detail}; {left:,} bytes from here on are not read" if left else detail)
