"""Reader of protobuf's wire format, as far as MindSpore's files use it: fields of a message, with long values left in the file.

The protobuf library reads whole messages, and a message of a MindSpore checkpoint is as large as a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

OF_NUMBER, FIXED64, OF_BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types of a field."""

Content = bytes | memoryview
"""Buffer that messages are read from."""


class Field(NamedTuple):
    """Field of a protobuf message of a MindSpore checkpoint file. number: field number. way: wire type. value:
    integer, or length in bytes. begin, end: its bytes in the content."""

    number: int
    way: int
    value: int
    begin: int
    end: int


def varint(content: Content, at: int, end: int) -> tuple[int, int]:
    """Read a protobuf varint (seven bits a byte). Returns number and next position. Raises ValueError if it does not end."""
    value = shift = 0
    while at < end:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            break
    raise ValueError("a number that does not end")


def field_at(content: Content, at: int, end: int, whole: int) -> Field:
    """Read the protobuf field at position `at`. end: end of the available content. whole: end of the message, which may be later.

    Raises ValueError for a field that ends outside of the message, or has an unknown wire type.
    """
    key, at = varint(content, at, end)
    number, way = key >> 3, key & 7
    if way == OF_NUMBER:
        value, after = varint(content, at, end)
        return Field(number, way, value, at, after)
    if way == OF_BYTES:
        length, begin = varint(content, at, end)
    elif way in (FIXED64, FIXED32):
        length, begin = 8 if way == FIXED64 else 4, at
    else:
        raise ValueError(f"a field of way {way}")
    if not number or begin + length > whole:
        raise ValueError("a field that is not inside its message")
    return Field(number, way, length, begin, begin + length)


def fields(content: Content, begin: int, end: int) -> Iterator[Field]:
    """Yield the fields of a protobuf message that is wholly in `content`. Raises ValueError as `field_at` does."""
    while begin < end:
        found = field_at(content, begin, end, end)
        yield found
        begin = found.end


def message(content: Content, begin: int, end: int) -> dict[int, list[Field]]:
    """Return the fields of a protobuf message by their numbers, each in order. Raises ValueError as `field_at` does."""
    found: dict[int, list[Field]] = {}
    for field in fields(content, begin, end):
        found.setdefault(field.number, []).append(field)
    return found


def numbers(content: Content, found: Field) -> list[int]:
    """Return the signed numbers of a repeated field of MindSpore's checkpoint files: one number, or several packed into bytes."""
    if found.way == OF_NUMBER:
        return [_signed(found.value)]
    if found.way != OF_BYTES:
        raise ValueError("numbers of another way")
    values, at = [], found.begin
    while at < found.end:
        value, at = varint(content, at, found.end)
        values.append(_signed(value))
    return values


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
