"""Reader of MindSpore's checkpoint files (`.ckpt`): a protobuf `Checkpoint` of values, each with a tag and a tensor.

    Checkpoint  value = 1*:  Value  tag = 1, tensor = 2:  TensorProto  dims = 1*, tensor_type = 2, tensor_content = 3

A tensor of more than 512 MB is written as several values with one tag, each with the dims of the whole. Tensors stay on the disk.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pangu_sigma.checkpoint.lazy import map_file
from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.file_tensors import KINDS, FileTensor, WholeTensor, map_tensor
from pangu_sigma.foreign.protobuf import OF_BYTES, numbers, read_field

_KINDS = {"Float32": "float32", "Float16": "float16", "BFloat16": "bfloat16"}
_HEAD_BYTES = 512
"""Number of bytes read at the start of a value: its tag, dims and type are far shorter."""
_MOST_VALUES = 200_000
"""Maximum number of values of a file."""
_CHECKSUM = b"crc_num"
"""End of a file that was saved with a checksum; ten more bytes follow."""


class _Value(NamedTuple):
    """Tagged tensor, or part of a tensor, in a checkpoint file. kind: dtype. content: (first byte, end) of its numbers."""

    name: str
    dims: tuple[int, ...]
    kind: str
    content: tuple[int, int]


def open_ckpt(path: Path) -> dict[str, WholeTensor]:
    """Return the tensors of a MindSpore checkpoint file by name. Raises LayoutError for a damaged, encrypted or other file."""
    values: dict[str, list[_Value]] = {}
    for value in _values(path):
        values.setdefault(value.name, []).append(value)
    if not values:
        raise LayoutError(f"{path}: it is empty; download it again")
    content = map_file(path)
    return {name: _join_values(path, content, parts) for name, parts in values.items()}


def _values(path: Path) -> Iterator[_Value]:
    """Yield the values of a file. Only their heads are read, one by one, because a map of the file would read ahead."""
    at, count, size = 0, 0, path.stat().st_size
    with open(path, "rb", buffering=0) as stream:
        while at < size:
            head = os.pread(stream.fileno(), _HEAD_BYTES, at)
            if size - at == len(_CHECKSUM) + 10 and head.startswith(_CHECKSUM):  # no value, the end of the file
                return
            count += 1
            if count > _MOST_VALUES:
                raise LayoutError(f"{path}: more than {_MOST_VALUES:,} values; no checkpoint of weights has so many")
            try:
                value = _parse_value(head, size - at)
            except ValueError as error:
                problem = f"no checkpoint of MindSpore at byte {at} ({error}), or encrypted"
                raise LayoutError(f"{path}: {problem}; download it again") from None
            begin, end = value.content
            yield value._replace(content=(at + begin, at + end))
            at += end


def _parse_value(head: bytes, remaining_bytes: int) -> _Value:
    """Parse a value: tag = 1, tensor = 2 with dims = 1, tensor_type = 2, tensor_content = 3. Raises ValueError if it is no value.
    head: the value's first bytes, from which positions count. remaining_bytes: bytes of the file from the value on."""
    value = read_field(head, 0, remaining_bytes)
    tag = read_field(head, value.begin, value.end)
    tensor = read_field(head, tag.end, value.end)
    if [(f.number, f.wire_type) for f in (value, tag, tensor)] != [(1, OF_BYTES), (1, OF_BYTES), (2, OF_BYTES)]:
        raise ValueError("no value of a tag and a tensor")
    dims: list[int] = []
    dtype, position = "", tensor.begin
    while position < tensor.end:
        entry_field = read_field(head, position, tensor.end)
        # the content is the last field, of the tensor and of the value
        if entry_field.number == 3 and entry_field.end == tensor.end == value.end:
            name = head[tag.begin : tag.end].decode()
            return _Value(name, tuple(dims), _KINDS.get(dtype, dtype[:40]), (entry_field.begin, entry_field.end))
        if entry_field.number == 1:
            dims += numbers(head, entry_field)
        elif entry_field.number == 2:
            dtype = head[entry_field.begin : entry_field.end].decode()
        position = entry_field.end
    raise ValueError("a tensor without dims, type and content")


def _join_values(path: Path, content: np.ndarray, values: list[_Value]) -> WholeTensor:
    """Join the values of one tag to a tensor. content: the mapped file. Raises LayoutError if they do not fill its shape."""
    name, shape, kind, _ = values[0]
    extents = [value.content for value in values]
    if len({(value.name, value.dims, value.kind) for value in values}) > 1:
        raise LayoutError(f"{path}: {name[:80]} is twice in the file, of two shapes or types; it is damaged")
    if len(values) == 1 or kind not in KINDS:
        begin, end = extents[0]
        return WholeTensor.from_part(map_tensor(path, name, kind, shape, content[begin:end]))
    itemsize, length = KINDS[kind].itemsize, sum(end - begin for begin, end in extents)
    has_split_number = any((end - begin) % itemsize for begin, end in extents)
    if length != math.prod(shape) * itemsize or min(shape, default=0) < 0 or has_split_number:
        raise LayoutError(f"{path}: {name[:80]} of shape {shape} has {length} bytes; it is damaged, or is twice there")
    if len(shape) not in (1, 2):
        raise LayoutError(f"{path}: {name[:80]} is in {len(values)} values and has {len(shape)} axes; convert it")
    parts, start = list[FileTensor](), 0  # start: index in the flattened tensor
    for begin, end in extents:
        flat_values = content[begin:end].view(KINDS[kind])
        parts += [FileTensor(path, name, kind, *piece) for piece in _pieces(flat_values, start, shape)]
        start += len(flat_values)
    return WholeTensor(shape, parts)


def _pieces(flat: np.ndarray, start: int, shape: tuple[int, ...]) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    """Split a stretch of a flattened tensor into an incomplete first row, whole rows and an incomplete last row. Yield for each
    (values, index of the first value in the tensor, by axis). flat: values of the stretch. start: index of the stretch's first
    value in the flattened tensor. shape: of the tensor, which has 1 or 2 axes."""
    n, axes, row_length = len(flat), len(shape), max(1, math.prod(shape[1:]))
    whole_rows_begin, whole_rows_end = min(n, -start % row_length), max(0, n - (start + n) % row_length)
    for begin, end in pairwise(sorted({0, whole_rows_begin, whole_rows_end, n})):
        values = flat[begin:end].reshape((-1, min(row_length, end - begin))[:axes])
        yield values, divmod(start + begin, row_length)[:axes]  # (row, column), or the index on the only axis
