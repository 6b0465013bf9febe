"""Reader of protobuf's wire format, as far as MindSpore's files use it: fields of a message, with long values left in the file.

The protobuf library reads whole messages, and a message of a MindSpore checkpoint is as large as a tensor. MindSpore selects its
implementation in Python, in which 1 MB of empty messages, such as a hostile strategy file has, takes 400 MB and seconds.
"""

from __future__ import annotations

from typing import NamedTuple

OF_NUMBER, OF_BYTES = 0, 2
"""Wire types of a field."""
_FIXED = {1: 8, 5: 4}
"""Wire type of a number that is not a varint → its bytes."""

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


def varint(content: Content, at: int) -> tuple[int, int]:
    """Read a protobuf varint (seven bits a byte). Returns number and next position. Raises ValueError if it does not end."""
    value = 0
    for i, byte in enumerate(content[at : at + 10]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise ValueError("a number that does not end")


def field_at(content: Content, at: int, end: int) -> Field:
    """Read the protobuf field at position `at`. end: end of its message, which may be behind that of the content.

    Raises ValueError for a field that ends outside of the message, or has an unknown wire type.
    """
    key, begin = varint(content, at)
    number, way = key >> 3, key & 7
    value, after = varint(content, begin) if way in (OF_NUMBER, OF_BYTES) else (_FIXED.get(way), begin)
    if value is None:
        raise ValueError(f"a field of way {way}")
    if way != OF_NUMBER:
        begin, after = after, after + value
    if not number or after > end:
        raise ValueError("a field that is not inside its message")
    return Field(number, way, value, begin, after)


def message(content: Content, at: int, end: int) -> dict[int, list[Field]]:
    """Return the fields of a protobuf message by their numbers, each in order. Raises ValueError as `field_at` does."""
    found: dict[int, list[Field]] = {}
    while at < end:
        field = field_at(content, at, end)
        found.setdefault(field.number, []).append(field)
        at = field.end
    return found


def numbers(content: Content, found: Field) -> list[int]:
    """Return the signed numbers of a repeated field of MindSpore's checkpoint files: one number, or several packed into bytes."""
    values, at = list[int](), found.begin
    while at < found.end:
        value, at = varint(content, at)
        values.append(value - (1 << 64) if value >> 63 else value)
    if found.way not in (OF_NUMBER, OF_BYTES) or at > found.end:
        raise ValueError("numbers of another way")
    return values
