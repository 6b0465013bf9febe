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
    """Field of a protobuf message. number: field number. wire_type: OF_NUMBER, OF_BYTES or a key of `_FIXED`. value: integer, or
    length in bytes. begin, end: position of its bytes in the content."""

    number: int
    wire_type: int
    value: int
    begin: int
    end: int


def read_varint(content: Content, at: int) -> tuple[int, int]:
    """Read the protobuf varint at position `at`: seven bits a byte, lowest first, the eighth bit set on all but the last byte.
    Return (number, next position). Raises ValueError if it does not end within ten bytes."""
    value = 0
    for i, byte in enumerate(content[at : at + 10]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise ValueError("a number that does not end")


def read_field(content: Content, at: int, end: int) -> Field:
    """Read the protobuf field at position `at`. end: position where its message ends; `content` may be only the message's head.

    Raises ValueError for a field that ends outside of the message, or has an unknown wire type.
    """
    key, begin = read_varint(content, at)
    number, wire_type = key >> 3, key & 7
    if wire_type not in (OF_NUMBER, OF_BYTES, *_FIXED):
        raise ValueError(f"a field of wire type {wire_type}")
    value, after = (_FIXED[wire_type], begin) if wire_type in _FIXED else read_varint(content, begin)
    if wire_type != OF_NUMBER:  # `value` is a length, and so many bytes follow
        begin, after = after, after + value
    if not number or after > end:
        raise ValueError("a field that is not inside its message")
    return Field(number, wire_type, value, begin, after)


def message(content: Content, at: int, end: int) -> dict[int, list[Field]]:
    """Return the fields of the protobuf message from `at` to `end`, in lists by field number. Raises ValueError as `read_field`."""
    fields: dict[int, list[Field]] = {}
    while at < end:
        field = read_field(content, at, end)
        fields.setdefault(field.number, []).append(field)
        at = field.end
    return fields


def numbers(content: Content, repeated: Field) -> list[int]:
    """Return the signed numbers of a repeated field: one number, or several that are packed into bytes. Raises ValueError."""
    values, at = list[int](), repeated.begin
    while at < repeated.end:
        value, at = read_varint(content, at)
        values.append(value - (1 << 64) if value >> 63 else value)  # negative numbers are in two's complement
    if repeated.wire_type not in (OF_NUMBER, OF_BYTES) or at > repeated.end:
        raise ValueError("numbers of another wire type")
    return values
