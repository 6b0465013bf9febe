"""Readers of JSON, plain or compressed: JSON lines, and an array of objects, as WuDaoCorpora is published, on one line or many.

Both read in bounded memory, one object at a time. Python's parser finds the end of an element of an array. So what is no JSON ends
the reading of an array, and it is said how much is not read. PyArrow decompresses, which reports a stream that was cut off; the
package `zstandard` reads such a stream as if it were whole.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, NoReturn

from pangu_sigma.errors import DataError, argument
from pangu_sigma.text.documents import MAX_LINE_BYTES, RejectedLine, Row

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""UTF-8 byte order mark, removed from the start of a file."""
_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
"""Ends of the names of compressed files, and their format."""
_SKIP_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 18
"""Bytes read at once, at least."""
_BLANKS = re.compile("[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def _open_stream(path: Path) -> BinaryIO:
    """Open a file and return its bytes, decompressed if the name ends in .gz or .zst. Raises OSError."""
    if path.suffix not in _COMPRESSED:
        return path.open("rb")
    import pyarrow  # here: it takes 0.2 s

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(os.fsencode(path)), _COMPRESSED[path.suffix]))


def _broken_stream(path: Path, offset: int, error: OSError, option: str = "--input") -> RejectedLine:
    """Return the rejection of a compressed stream that was cut off. Raises DataError for every other error of reading. offset:
    number of bytes that were read before the error. option: names the file in messages."""
    if "Truncated compressed stream" in str(error):
        return RejectedLine("cut stream", f"{error}; copy the file again")
    if error.errno is None:  # PyArrow's error about the data, not one of the disk
        raise DataError(
            f"{argument(option)} {path}: the {_COMPRESSED[path.suffix]} stream is damaged after byte {offset} of its text, or is "
            f"none ({error}), so any line before may be other text, too; copy the file again, or, if it is not compressed, name it "
            f"*{Path(path.stem).suffix}"
        ) from error
    raise DataError(f"{argument(option)} {path}: cannot be read at byte {offset}: {error}; check the disk") from error


def json_lines(path: Path, begin: int = 0, end: int | None = None, option: str = "--input") -> Iterator[Row]:
    """Yield the lines of a file. begin, end: offsets of line ends of a plain file. option: names the file in messages.

    Raises DataError if the file cannot be read, if a compressed stream is damaged, because its lines may then be other text, and
    if the file ends before `end`.
    """
    offset, is_all_blank = begin, True
    with _open_stream(path) as file:
        if begin:
            file.seek(begin)
        while end is None or offset < end:
            try:
                line, size = _read_line(file)
            except OSError as error:
                yield offset, _broken_stream(path, offset, error, option)
                return
            if not line:
                break
            content = line if offset else line.removeprefix(_BYTE_ORDER_MARK)
            if content.strip():
                is_all_blank = False
                yield offset, content if size <= MAX_LINE_BYTES else RejectedLine.too_long(size)
            else:
                yield offset, None
            offset += size
        is_whole_file = not begin and (end is None or not file.read(1))  # not a part, which may be blank
    if end is not None and offset < end:
        problem = f"was changed while it was read: it ends at byte {offset}, not at {end}"
        raise DataError(f"{argument(option)} {path}: {problem}")
    if is_all_blank and is_whole_file:
        yield 0, RejectedLine("empty file", f"there {'are only blanks' if offset else 'is no line'} in it")


def _read_line(file: BinaryIO) -> tuple[bytes, int]:
    """Read the next line, and return it with its size. Of a line over MAX_LINE_BYTES only the beginning is returned, to bound
    memory."""
    line = chunk = file.readline(MAX_LINE_BYTES + 1)
    size = len(line)
    while size > MAX_LINE_BYTES and chunk and not chunk.endswith(b"\n"):
        chunk = file.readline(_SKIP_BYTES)
        size += len(chunk)
    return line, size


def line_ends(path: Path, size: int) -> list[int]:
    """Return the offsets at which a plain file is cut into parts of about `size` bytes: 0, the first end of a line at or after each
    multiple of `size`, and the size of the file. Each byte is read at most once, so a very long line costs no more than others."""
    ends, total = [0], path.stat().st_size
    with path.open("rb") as file:
        while (multiple := (ends[-1] // size + 1) * size) < total:
            end = multiple - 1  # a line may end right before the multiple
            file.seek(end)
            while (chunk := file.readline(_SKIP_BYTES)) and not chunk.endswith(b"\n"):
                end += len(chunk)
            end += len(chunk)
            if end >= total:  # the line is the last one
                break
            ends.append(end)
    return [*ends, total]


def json_array(path: Path) -> Iterator[Row]:
    """Yield the elements of the JSON array in a file, as rows. A file that begins with an object is read as JSON lines, which many
    publish under this name. A RejectedLine takes the place of the first element that is not JSON, and ends the rows. Raises
    DataError as `json_lines` does."""
    with _open_stream(path) as file:
        elements = _ArrayElements(file)
        try:
            yield from json_lines(path) if elements.peek() == "{" else iter(elements)
        except OSError as error:
            yield elements.offset, _broken_stream(path, elements.offset, error)
        except RejectedLine as rejection:
            yield elements.offset, rejection


class _ArrayElements:
    """Elements of the JSON array in a stream, each as bytes. The bytes are parsed as Latin-1, because the end of an element does
    not depend on the characters that they spell."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._is_at_end = file, False
        self._text, self._position = "", 0  # bytes that were read, as Latin-1, and the present place in them
        self._text_offset = 0  # number of bytes of the stream before `_text`

    @property
    def offset(self) -> int:
        """Number of bytes of the stream before the present place."""
        return self._text_offset + self._position

    def __iter__(self) -> Iterator[Row]:
        """Yield each element with its offset. Raises RejectedLine where the stream is not a JSON array."""
        if not (mark := self.peek()):
            yield 0, RejectedLine("empty file", f"there {'are only blanks' if self.offset else 'is nothing'} in it")
            return
        if mark != "[":
            self._reject_rest("not a JSON array", f"the file begins with {mark!a}, not with '['; it must be UTF-8")
        self._position += 1
        if self.peek() == "]":
            self._reject_rest("empty file", "there is no element in the array")
        while mark != "]":
            self.peek()
            yield self.offset, self._element()
            mark = self.peek()  # a comma before the next element, or the end
            if mark not in (",", "]"):
                self._reject_rest("not JSON", f"',' or ']' expected, not {mark!a}" if mark else "the array has no end")
            self._position += 1
        if self.peek():
            self._reject_rest("not a JSON array", "join arrays with `jq -c '.[]' FILE > lines.jsonl`")

    def peek(self) -> str:
        """Move to the next character that is no blank, and return it without reading it; "" at the end of the file."""
        while True:
            has_mark = not self.offset and self._text.startswith(_BYTE_ORDER_MARK.decode("latin-1"))
            blanks = _BLANKS.match(self._text, len(_BYTE_ORDER_MARK) if has_mark else self._position)
            assert blanks is not None, "the pattern matches the empty text, too"
            self._position = blanks.end()
            if self._position < len(self._text) or self._is_at_end:
                return self._text[self._position : self._position + 1]
            self._read_more()

    def _element(self) -> bytes | RejectedLine:
        """Return the bytes of the next element; a `RejectedLine` if they are too many. Raises RejectedLine if it is no JSON."""
        while True:
            try:
                end = _DECODER.raw_decode(self._text, self._position)[1]
                # a number that ends here may go on in the file, as 1 does in 1e+5
                if self._is_at_end or end + 2 < len(self._text):
                    element, self._position = self._text[self._position : end].encode("latin-1"), end
                    return element if len(element) <= MAX_LINE_BYTES else RejectedLine.too_long(len(element))
            except (ValueError, RecursionError) as error:  # the element is not JSON, or not read to its end
                message = getattr(error, "msg", str(error))
                if isinstance(error, RecursionError) or self._is_at_end:
                    self._reject_rest("not JSON", message)
                if len(self._text) - self._position > MAX_LINE_BYTES:
                    self._reject_rest("not JSON", f"{message}, or an element is longer than {MAX_LINE_BYTES:,} bytes")
            self._read_more()

    def _read_more(self) -> None:
        """Forget the parsed text, and read at least as much as is left of it, so that a long element is not parsed often."""
        self._text_offset, self._text, self._position = self.offset, self._text[self._position :], 0
        size, chunks = 0, list[bytes]()
        least_size = max(len(self._text), _CHUNK_BYTES, len(_BYTE_ORDER_MARK))
        try:
            while size < least_size and (chunk := self._file.read1(_CHUNK_BYTES)):  # type: ignore[attr-defined]
                chunks.append(chunk)
                size += len(chunk)
        except OSError:
            if not chunks:  # else the chunks are parsed first, and the next call raises the error
                raise
        self._text += b"".join(chunks).decode("latin-1")
        self._is_at_end = not chunks

    def _reject_rest(self, reason: str, detail: str) -> NoReturn:
        """Raise RejectedLine with the number of bytes that are not used. They are read, so that a checksum is verified."""
        unread = len(self._text) - self._position + sum(map(len, iter(partial(self._file.read, _CHUNK_BYTES), b"")))
        raise RejectedLine(reason, f"{detail}; {unread:,} bytes from here on are not read" if unread else detail)
