"""Tensors in files of other projects: mapped into memory, and joined and transposed when they are read.

Values are read in slices of rows, so that a tensor joined from 512 files, or transposed, takes little more than its own memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from pangu_sigma.checkpoint.lazy import LazyArray, release_pages
from pangu_sigma.errors import LayoutError

KINDS: dict[str, np.dtype] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype("<u2")}
"""Dtype of a weight in a file → dtype of its mapped values. NumPy has no bfloat16; float32 holds its values exactly."""
MIXED = "the files are not of one model"
"""Reason in the messages of files that contradict each other."""
_SLICE = 4 << 20
"""Number of bytes of a slice of rows, read at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class FileTensor:
    """Tensor in a file of another project, or a part of one.

    name: its name in the file. kind: dtype in the file; one that is not in KINDS is refused when the tensor is used.
    values: mapped, and not read yet. corner: index of the first value in the whole tensor, by axis.
    check: compares a checksum before values are read, and raises LayoutError; None if the format has none.
    """

    file: Path
    name: str
    kind: str
    values: np.ndarray
    corner: tuple[int, ...]
    check: Callable[[], None] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def origin(self) -> str:
        """File and name of the tensor, for messages."""
        return f"{self.file}: {self.name}"

    def read(self, axis: int, begin: int, end: int) -> np.ndarray:
        """Copy the values from index `begin` to `end` of an axis, and release the pages of the file. bfloat16, the upper 16 bits
        of a float32, becomes float32. Raises LayoutError for a wrong checksum."""
        if self.check is not None:
            self.check()
        part = self.values[(slice(None),) * axis + (slice(begin, end),)]  # all of the axes before it
        values = (part.astype(np.uint32) << 16).view(np.float32) if self.kind == "bfloat16" else part.copy()
        release_pages(part)
        return values


def map_tensor(
    file: Path, name: str, kind: str, shape: Any, content: np.ndarray, offset: Any = 0, strides: Any = None
) -> FileTensor:
    """Return a tensor over `content`, bytes of a mapped file. The tensor must fill all of them, unless strides are given.

    kind: dtype in the file. shape, offset, strides: unchecked values from the file, of any type; offset and strides count
    values, not bytes. Raises LayoutError for a shape that the bytes cannot have.
    """
    try:
        if kind not in KINDS:  # only the shape matters: the tensor is refused when it is used as a weight
            values: np.ndarray = np.broadcast_to(np.uint8(0), shape)
            return FileTensor(file, name, kind, values, (0,) * values.ndim)
        dtype = KINDS[kind]
        byte_strides = None if strides is None else tuple(step * dtype.itemsize for step in strides)
        values = np.ndarray(shape, dtype, content, offset * dtype.itemsize, byte_strides)
        least_bytes = len(content) if strides is None else 0
        # a damaged file may state strides of 0, with which few bytes make a huge tensor
        if not least_bytes <= values.nbytes <= len(content) or values.shape != tuple(shape):
            raise ValueError("another number of bytes")
    except (TypeError, ValueError, OverflowError, MemoryError):
        problem = f"has the shape {shape!s:.80}, which its {len(content)} bytes cannot have"
        raise LayoutError(f"{file}: {name:.99} {problem}; download it again") from None
    return FileTensor(file, name, kind, values, (0,) * values.ndim)


@dataclass(frozen=True)
class WholeTensor:
    """Whole tensor of another project, joined from its parts in files.

    twin: tensor that must equal the only part, which is compared when that is read; None if there is none.
    """

    shape: tuple[int, ...]
    parts: Sequence[FileTensor]
    twin: FileTensor | None = None

    @classmethod
    def from_part(cls, part: FileTensor) -> WholeTensor:
        """Return the tensor of a single part, which is whole."""
        return cls(part.shape, [part])

    @property
    def kind(self) -> str:
        """Dtype in the files."""
        return self.parts[0].kind

    def lazy_array(self, name: str, transposed: bool = False) -> LazyArray:
        """Return an array that reads and joins the parts when it is read. name: name of the tensor in our model, for messages.
        transposed: True to transpose it. Raises LayoutError if the parts have different dtypes or do not fill the shape."""
        first = self.parts[0]
        for part in self.parts:
            if part.kind not in KINDS:
                raise LayoutError(f"{part.origin} ({name}) is {part.kind}; convert it to one of {', '.join(KINDS)}")
            if part.kind != first.kind:
                raise LayoutError(f"{part.origin} is {part.kind}, {first.origin} is {first.kind}; {MIXED}")
        if not self._is_filled():
            problem = f"and {len(self.parts) - 1} more do not fill {name} of shape {self.shape}"
            raise LayoutError(f"{first.origin} {problem}; take the whole release")
        shape = self.shape[::-1] if transposed else self.shape
        return LazyArray(shape, self._dtype, partial(self._slices, transposed), origin=first.origin)

    @property
    def _dtype(self) -> np.dtype:
        return KINDS["float32" if self.kind == "bfloat16" else self.kind]

    def _is_filled(self) -> bool:
        """Return True if every part is inside the tensor, no two begin at one index, and together they have as many values."""
        corners = [part.corner for part in self.parts if part.values.size]
        return (
            all(len(part.shape) == len(self.shape) for part in self.parts)
            and all((np.add(part.corner, part.shape) <= self.shape).all() for part in self.parts)
            and sum(part.values.size for part in self.parts) == math.prod(self.shape)
            and len(set(corners)) == len(corners)
        )

    def _slices(self, transposed: bool) -> Iterator[np.ndarray]:
        """Yield the tensor in slices of about 4 MiB along its first axis. transposed: True for slices along its last axis, each
        transposed, which make the transposed tensor. Raises LayoutError if the twin has other values."""
        axis = len(self.shape) - 1 if transposed else 0
        bytes_of_index = math.prod(self.shape) // max(1, self.shape[axis]) * self._dtype.itemsize
        length = max(1, _SLICE // max(1, bytes_of_index))
        for begin in range(0, self.shape[axis], length):
            end = min(begin + length, self.shape[axis])
            values = np.empty((*self.shape[:axis], end - begin, *self.shape[axis + 1 :]), self._dtype)
            for part in self.parts:
                part_begin = part.corner[axis]
                low, high = max(begin, part_begin), min(end, part_begin + part.shape[axis])
                if low < high:  # the part reaches into this slice
                    target = [slice(first, first + n) for first, n in zip(part.corner, part.shape, strict=True)]
                    target[axis] = slice(low - begin, high - begin)
                    values[tuple(target)] = part.read(axis, low - part_begin, high - part_begin)
            if self.twin and not np.array_equal(values, self.twin.read(axis, begin, end), equal_nan=True):
                problem = f"is not equal to {self.parts[0].name}, as it must be"
                raise LayoutError(f"{self.twin.origin} {problem}: it cannot be used")
            yield values.T if transposed else values


def path_in_folder(folder: Path, name: object, entry: str) -> Path:
    """Return the path of the file or folder `name` inside a folder. name: value read from another file, of any type and content.
    entry: description of the file or folder, for messages. Raises LayoutError if `name` has a path in it, or does not exist."""
    if not isinstance(name, str) or not name or name in (".", "..") or set(name) & set("/\\\0:") or len(name) > 255:
        raise LayoutError(f"{folder}: {entry} is {str(name)[:80]!r}, not a name in this folder; download it again")
    if not (folder / name).exists():
        raise LayoutError(f"{folder}: {entry} is {name}, which is not there; take the whole release")
    return folder / name


_HEADER_ERRORS = (
    *(ValueError, SyntaxError, TypeError, EOFError, ArithmeticError),
    *(RecursionError, MemoryError, TokenError),
)
"""Errors that NumPy raises for the header of a damaged .npy file, a Python literal."""


def npy_source(file: Path) -> WholeTensor:
    """Map the array of an .npy file, without pickles. Raises LayoutError unless it has float32 or float16 values in C order."""
    try:
        array = np.lib.format.open_memmap(file, mode="r")
    except _HEADER_ERRORS as error:
        raise LayoutError(f"{file}: no array of NumPy, or cut short ({str(error)[:80]}); download it again") from None
    dtype = array.dtype
    order = "" if array.flags.c_contiguous else " in Fortran order"
    if order or dtype.name not in ("float32", "float16") or dtype.byteorder == ">":
        raise LayoutError(f"{file}: it holds {dtype}{order}; convert it to float32 or float16 in C order")
    return WholeTensor.from_part(FileTensor(file, file.name, dtype.name, array, (0,) * array.ndim))
