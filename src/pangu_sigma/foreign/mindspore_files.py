"""Reader of MindSpore's checkpoint files (`.ckpt`): a protobuf `Checkpoint` of values, each with a tag and a tensor.

    Checkpoint  value = 1*:  Value  tag = 1, tensor = 2:  TensorProto  dims = 1*, tensor_type = 2, tensor_content = 3

A tensor of more than 512 MB is written as several values with one tag, each with the dims of the whole. Tensors stay on the disk.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from pangu_sigma.foreign.dense_model import LayoutError
from pangu_sigma.foreign.file_tensors import FileTensor, Fragment, checked_sizes, row_major
from pangu_sigma.foreign.protobuf import OF_BYTES, field_at, numbers

_KINDS = {"Float32": "float32", "Float16": "float16", "BFloat16": "bfloat16"}
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_HEAD = 512
"""Number of bytes read at the start of a value: its tag, dims and type are far shorter."""
_MOST_VALUES = 200_000
"""Maximum number of values of a file."""
_CHECKSUM = b"crc_num"
"""End of a file that was saved with a checksum; ten more bytes follow."""


@dataclass
class CkptTensor:
    """Tensor in a MindSpore checkpoint file. extents: (first byte, number of bytes) of each of its parts, in order."""

    file: Path
    name: str
    shape: tuple[int, ...]
    kind: str
    extents: list[tuple[int, int]] = field(default_factory=list)

    def fragments(self, first: tuple[int, ...] | None = None, file: Path | None = None) -> list[Fragment]:
        """Return the tensor as fragments of a whole tensor, in which it begins at index `first`, by default 0.

        file: file to read the values from, with the same structure (`is_alike`), by default this tensor's file.
        Raises LayoutError for a tensor that is not of floats, or does not have the bytes of its shape.
        """
        file = file or self.file
        origin = f"{file}: {self.name}"
        if self.kind not in _BYTES:
            raise LayoutError(f"{origin} is {self.kind}; weights are read as {', '.join(_KINDS)}: convert it")
        itemsize, length = _BYTES[self.kind], sum(length for _, length in self.extents)
        if length != math.prod(self.shape) * itemsize:
            raise LayoutError(
                f"{origin} of shape {self.shape} has {length} bytes; it is damaged, or is twice in the file"
            )
        first = first or (0,) * len(self.shape)
        if len(self.extents) == 1:
            return [Fragment(self._stored(file, self.extents[0][0], self.shape), first)]
        return self._stretches(file, first, itemsize)

    def _stretches(self, file: Path, first: tuple[int, ...], itemsize: int) -> list[Fragment]:
        """Return a fragment for the whole rows of each value, and for each part of a row at its beginning or end."""
        row, origin = math.prod(self.shape[1:]), f"{file}: {self.name}"
        if len(self.shape) not in (1, 2):
            raise LayoutError(f"{origin} is in {len(self.extents)} values and has {len(self.shape)} axes; convert it")
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
                found.append(Fragment(self._stored(file, begin + taken * itemsize, shape), where))
                at, taken = at + rows * width, taken + rows * width
        return found

    def _stored(self, file: Path, offset: int, shape: tuple[int, ...]) -> FileTensor:
        return FileTensor(file, offset, self.kind, shape, row_major(shape), self.name)


@dataclass
class CkptFile:
    """Checkpoint file of MindSpore. tensors: its tensors by name. heads: (position, bytes) of everything except tensor values."""

    path: Path
    size: int
    tensors: dict[str, CkptTensor] = field(default_factory=dict)
    heads: list[tuple[int, bytes]] = field(default_factory=list)

    def is_alike(self, path: Path) -> bool:
        """Return True if another file differs from this one in tensor values only, as the files of one run's ranks do."""
        if path.stat().st_size != self.size:
            return False
        with open(path, "rb", buffering=0) as stream:
            descriptor = stream.fileno()
            return all(os.pread(descriptor, len(head), at) == head for at, head in self.heads)


def open_ckpt(path: Path) -> CkptFile:
    """Read a MindSpore checkpoint file except the tensors' values. Raises LayoutError for a damaged, encrypted or other file."""
    found, at = CkptFile(path, path.stat().st_size), 0
    with open(path, "rb", buffering=0) as stream:
        descriptor = stream.fileno()
        while at < found.size:
            head = os.pread(descriptor, _HEAD, at)
            if found.size - at == len(_CHECKSUM) + 10 and head.startswith(_CHECKSUM):
                found.heads.append((at, _CHECKSUM))
                break
            if len(found.heads) >= _MOST_VALUES:
                raise LayoutError(f"{path}: more than {_MOST_VALUES:,} values; no checkpoint of weights has so many")
            try:
                at = _value(found, head, at)
            except LayoutError:
                raise
            except ValueError as error:
                raise LayoutError(
                    f"{path}: no checkpoint of MindSpore at byte {at} ({error}); it is damaged, cut short or encrypted: "
                    "download it again"
                ) from None
    if not found.tensors:
        raise LayoutError(f"{path}: it is empty; download it again")
    return found


def _value(file: CkptFile, head: bytes, at: int) -> int:
    """Record the value whose head begins at a byte of the file. Returns the byte after it."""
    end = len(head)
    value = field_at(head, 0, end, file.size - at)
    if value.number != 1 or value.way != OF_BYTES:
        raise ValueError("no value")
    tag = field_at(head, value.begin, end, value.end)
    if tag.number != 1 or tag.way != OF_BYTES or tag.end > end:
        raise ValueError("no tag")
    name = head[tag.begin : tag.end].decode()
    tensor = field_at(head, tag.end, end, value.end)
    if tensor.number != 2 or tensor.way != OF_BYTES or tensor.end != value.end:
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
            file.heads.append((at, head[: found.begin]))
            _note(file, name, dims, _KINDS.get(kind, kind[:40]), (at + found.begin, found.value))
            return at + value.end
        else:
            raise ValueError(f"{name[:80]} has no type and content")
        inner = found.end
    raise ValueError(f"{name[:80]} has no content")


def _note(file: CkptFile, name: str, dims: list[int], kind: str, extent: tuple[int, int]) -> None:
    known = file.tensors.get(name)
    if known is None:
        shape = checked_sizes(file.path, name[:80], dims)
        known = file.tensors[name] = CkptTensor(file.path, name, shape, kind)
    elif list(known.shape) != dims or known.kind != kind:
        raise LayoutError(f"{file.path}: {name[:80]} is twice in the file, of two shapes or types; it is damaged")
    known.extents.append(extent)
