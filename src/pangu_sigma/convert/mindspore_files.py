"""Checkpoint files of MindSpore (`.ckpt`): a protobuf `Checkpoint` of values, each a tag and a tensor.

    Checkpoint  value = 1*:  Value  tag = 1, tensor = 2:  TensorProto  dims = 1*, tensor_type = 2, tensor_content = 3

A tensor of more than 512 MB is written as several values of one tag, each with the dims of the whole. Values stay on the disk.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from pangu_sigma.convert.dense_model import LayoutError
from pangu_sigma.convert.protobuf import BYTES, field_at, numbers
from pangu_sigma.convert.stored import Fragment, Stored, checked_sizes, row_major

_KINDS = {"Float32": "float32", "Float16": "float16", "BFloat16": "bfloat16"}
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_HEAD = 512
"""Bytes read at the head of a value: its tag, dims and type are far shorter."""
_MOST_VALUES = 200_000
"""Number of values of the largest file that is read."""
_CHECKSUM = b"crc_num"
"""What a file ends with, and ten bytes more, if it was saved with a checksum."""


@dataclass
class CkptTensor:
    """A tensor of a file. extents: first byte and number of bytes of each value that holds a stretch of it, in order."""

    file: Path
    name: str
    shape: tuple[int, ...]
    kind: str
    extents: list[tuple[int, int]] = field(default_factory=list)

    def fragments(self, first: tuple[int, ...] | None = None) -> list[Fragment]:
        """Its values, as parts of a tensor in which it begins at `first`.

        Raises LayoutError when it is not of floats, or has more or fewer bytes than its shape says.
        """
        origin = f"{self.file}: {self.name}"
        if self.kind not in _BYTES:
            raise LayoutError(f"{origin} is {self.kind}; weights are read as {', '.join(_KINDS)}: convert it")
        itemsize, length = _BYTES[self.kind], sum(length for _, length in self.extents)
        if length != math.prod(self.shape) * itemsize:
            raise LayoutError(
                f"{origin} of shape {self.shape} has {length} bytes; it is damaged, or is twice in the file"
            )
        first = first or (0,) * len(self.shape)
        if len(self.extents) == 1:
            return [Fragment(self._stored(self.extents[0][0], self.shape), first)]
        return self._stretches(origin, first, itemsize)

    def _stretches(self, origin: str, first: tuple[int, ...], itemsize: int) -> list[Fragment]:
        """A fragment for the whole rows of each value, and for each end of a row that a value begins or ends with."""
        row = math.prod(self.shape[1:])
        if len(self.shape) not in (1, 2):
            raise LayoutError(
                f"{origin} is written in {len(self.extents)} values and has {len(self.shape)} axes; convert it"
            )
        found, at = [], 0
        for begin, length in self.extents:
            if length % itemsize:
                raise LayoutError(f"{origin} is written in values that do not end with a number; it is damaged")
            count, taken = length // itemsize, 0
            while taken < count:
                column, rows = at % row, 1
                if column == 0 and count - taken >= row:
                    rows, width = (count - taken) // row, row
                else:
                    width = min(row - column, count - taken)
                shape, corner = ((rows, width), (at // row, column)) if len(self.shape) == 2 else ((rows,), (at,))
                where = tuple(a + b for a, b in zip(first, corner, strict=True))
                found.append(Fragment(self._stored(begin + taken * itemsize, shape), where))
                at, taken = at + rows * width, taken + rows * width
        return found

    def _stored(self, offset: int, shape: tuple[int, ...]) -> Stored:
        return Stored(self.file, offset, self.kind, shape, row_major(shape), self.name)


def open_ckpt(path: Path) -> dict[str, CkptTensor]:
    """The tensors of a checkpoint file by their names; no value is read.

    Raises LayoutError when it is no such file, is cut short, or is encrypted.
    """
    tensors: dict[str, CkptTensor] = {}
    size, at = path.stat().st_size, 0
    with open(path, "rb", buffering=0) as stream:
        descriptor = stream.fileno()
        for _ in range(_MOST_VALUES):
            if at == size or (
                size - at == len(_CHECKSUM) + 10 and os.pread(descriptor, len(_CHECKSUM), at) == _CHECKSUM
            ):
                break
            try:
                at = _value(path, os.pread(descriptor, _HEAD, at), at, size, tensors)
            except (ValueError, UnicodeDecodeError) as error:
                if isinstance(error, LayoutError):
                    raise
                raise LayoutError(
                    f"{path}: no checkpoint of MindSpore at byte {at} ({error}); it is damaged, cut short or encrypted: download it again"
                ) from None
        else:
            raise LayoutError(f"{path}: more than {_MOST_VALUES:,} values; no checkpoint of weights has so many")
    if not tensors:
        raise LayoutError(f"{path}: it is empty; download it again")
    return tensors


def _value(path: Path, head: bytes, at: int, size: int, tensors: dict[str, CkptTensor]) -> int:
    """Note the value whose head begins at a byte of the file; returns the byte behind it."""
    end = len(head)
    value = field_at(head, 0, end, size - at)
    if value.number != 1 or value.way != BYTES:
        raise ValueError("no value")
    tag = field_at(head, value.begin, end, value.end)
    if tag.number != 1 or tag.way != BYTES or tag.end > end:
        raise ValueError("no tag")
    name = head[tag.begin : tag.end].decode()
    tensor = field_at(head, tag.end, end, value.end)
    if tensor.number != 2 or tensor.way != BYTES or tensor.end != value.end:
        raise ValueError(f"{name[:80]} is no tensor")
    dims: list[int] = []
    inner, kind = tensor.begin, ""
    while inner < tensor.end:
        found = field_at(head, inner, end, tensor.end)
        if found.number == 1 and found.end <= end:
            dims += numbers(head, found)
        elif found.number == 2 and found.end <= end:
            kind = head[found.begin : found.end].decode()
        elif found.number == 3 and found.end == tensor.end:
            _note(path, name, dims, _KINDS.get(kind, kind[:40]), (at + found.begin, found.value), tensors)
            return at + value.end
        else:
            raise ValueError(f"{name[:80]} has no type and content")
        inner = found.end
    raise ValueError(f"{name[:80]} has no content")


def _note(
    path: Path, name: str, dims: list[int], kind: str, extent: tuple[int, int], tensors: dict[str, CkptTensor]
) -> None:
    known = tensors.get(name)
    if known is None:
        known = tensors[name] = CkptTensor(path, name, checked_sizes(path, name[:80], dims), kind)
    elif list(known.shape) != dims or known.kind != kind:
        raise LayoutError(f"{path}: {name[:80]} is twice in the file, of two shapes or types; it is damaged")
    known.extents.append(extent)
