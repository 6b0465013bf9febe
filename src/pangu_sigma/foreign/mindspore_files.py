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
from pangu_sigma.foreign.file_tensors import KINDS, FileTensor, Joined, mapped
from pangu_sigma.foreign.protobuf import OF_BYTES, field_at, numbers

_KINDS = {"Float32": "float32", "Float16": "float16", "BFloat16": "bfloat16"}
_HEAD = 512
"""Number of bytes read at the start of a value: its tag, dims and type are far shorter."""
_MOST_VALUES = 200_000
"""Maximum number of values of a file."""
_CHECKSUM = b"crc_num"
"""End of a file that was saved with a checksum; ten more bytes follow."""


class _Value(NamedTuple):
    """Value of a checkpoint file. content: (first byte, end) of its values, which end the value."""

    name: str
    dims: tuple[int, ...]
    kind: str
    content: tuple[int, int]


def open_ckpt(path: Path) -> dict[str, Joined]:
    """Return the tensors of a MindSpore checkpoint file by name. Raises LayoutError for a damaged, encrypted or other file."""
    values: dict[str, list[_Value]] = {}
    for value in _values(path):
        values.setdefault(value.name, []).append(value)
    if not values:
        raise LayoutError(f"{path}: it is empty; download it again")
    content = map_file(path)
    return {name: _tensor(path, content, parts) for name, parts in values.items()}


def _values(path: Path) -> Iterator[_Value]:
    """Yield the values of a file. Only their heads are read, one by one: a map of the file would read ahead."""
    at, count, size = 0, 0, path.stat().st_size
    with open(path, "rb", buffering=0) as stream:
        while at < size:
            head, count = os.pread(stream.fileno(), _HEAD, at), count + 1
            if size - at == len(_CHECKSUM) + 10 and head.startswith(_CHECKSUM):
                return
            if count > _MOST_VALUES:
                raise LayoutError(f"{path}: more than {_MOST_VALUES:,} values; no checkpoint of weights has so many")
            try:
                value = _parsed(head, size - at)
            except ValueError as error:
                raise LayoutError(
                    f"{path}: no checkpoint of MindSpore at byte {at} ({error}), or encrypted; download it again"
                ) from None
            begin, end = value.content
            yield value._replace(content=(at + begin, at + end))
            at += end


def _parsed(head: bytes, left: int) -> _Value:
    """Parse the head of a value. left: bytes of the file from the value on. Raises ValueError for anything else."""
    value = field_at(head, 0, left)
    tag = field_at(head, value.begin, value.end)
    tensor = field_at(head, tag.end, value.end)
    if [(one.number, one.way) for one in (value, tag, tensor)] != [(1, OF_BYTES), (1, OF_BYTES), (2, OF_BYTES)]:
        raise ValueError("no value of a tag and a tensor")
    dims: list[int] = []
    kind, at = "", tensor.begin
    while at < tensor.end:
        found = field_at(head, at, tensor.end)
        if found.number == 3 and found.end == tensor.end == value.end:
            name = head[tag.begin : tag.end].decode()
            return _Value(name, tuple(dims), _KINDS.get(kind, kind[:40]), (found.begin, found.end))
        if found.number == 1:
            dims += numbers(head, found)
        elif found.number == 2:
            kind = head[found.begin : found.end].decode()
        at = found.end
    raise ValueError("a tensor without dims, type and content")


def _tensor(path: Path, content: np.ndarray, values: list[_Value]) -> Joined:
    """Return the tensor that the values of one tag hold. Raises LayoutError if they do not have the bytes of its shape."""
    name, shape, kind, _ = values[0]
    extents = [value.content for value in values]
    if len({value[:3] for value in values}) > 1:
        raise LayoutError(f"{path}: {name[:80]} is twice in the file, of two shapes or types; it is damaged")
    if len(values) == 1 or kind not in KINDS:
        return Joined.only(mapped(path, name, kind, shape, content[slice(*extents[0])]))
    itemsize, length = KINDS[kind].itemsize, sum(end - begin for begin, end in extents)
    ends_within = any((end - begin) % itemsize for begin, end in extents)
    if length != math.prod(shape) * itemsize or min(shape, default=0) < 0 or ends_within:
        raise LayoutError(f"{path}: {name[:80]} of shape {shape} has {length} bytes; it is damaged, or is twice there")
    if len(shape) not in (1, 2):
        raise LayoutError(f"{path}: {name[:80]} is in {len(values)} values and has {len(shape)} axes; convert it")
    parts, at = list[FileTensor](), 0
    for begin, end in extents:
        flat = content[begin:end].view(KINDS[kind])
        parts += [FileTensor(path, name, kind, *piece) for piece in _pieces(flat, at, shape)]
        at += len(flat)
    return Joined(shape, parts)


def _pieces(flat: np.ndarray, at: int, shape: tuple[int, ...]) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    """Yield (values, first index) of the whole rows in a stretch of a flattened tensor, and of the part of a row at either end.

    at: index of the stretch's first value in the flattened tensor.
    """
    n, row = len(flat), max(1, math.prod(shape[1:]))
    for begin, end in pairwise(sorted({0, min(n, -at % row), max(0, n - (at + n) % row), n})):
        values = flat[begin:end].reshape((-1, min(row, end - begin))[: len(shape)])
        yield values, divmod(at + begin, row)[: len(shape)]
