"""Tensors in files: positions of their bytes, and lazy joining and transposing into the tensors of a model.

Values are read in slices of rows, so that a tensor that is joined from 512 files, or transposed, takes little more memory than its
own size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.mapped_file import map_file
from pangu_sigma.foreign.dense_model import MIXED, LayoutError

logger = logging.getLogger(__name__)

KINDS: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.float32),
}
"""Dtype of a weight in a file → dtype of the array that is read: NumPy has no bfloat16; float32 holds its values exactly."""
_SLICE = 4 << 20
"""Number of bytes of a slice of rows, read at a time."""
_MOST_SIZE = 1 << 40
"""Maximum accepted size of an axis of a tensor."""


@dataclass(frozen=True)
class FileTensor:
    """Position of a tensor's values in a file of another project.

    offset: byte of the first value. kind: dtype of the values; a dtype that is not in KINDS is refused when the tensor is used.
    strides: strides in values, not bytes. name: name of the tensor in the file. check: compares a checksum before values are read,
    and raises LayoutError; None if the format has none.
    """

    file: Path
    offset: int
    kind: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    name: str
    check: Callable[[], None] | None = None

    @property
    def origin(self) -> str:
        """File and name of the tensor, for messages."""
        return f"{self.file}: {self.name}"

    def values(self) -> np.ndarray:
        """Map the values into memory; bfloat16 as uint16."""
        raw = np.dtype("<u2" if self.kind == "bfloat16" else KINDS[self.kind].newbyteorder("<"))
        if 0 in self.shape:
            return np.empty(self.shape, raw)
        if self.check is not None:
            self.check()
        count = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        mapped = map_file(self.file)[self.offset :][: count * raw.itemsize]
        return np.ndarray(self.shape, raw, mapped, 0, tuple(step * raw.itemsize for step in self.strides))


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in values, of a contiguous tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def checked_sizes(file: Path, name: str, sizes: Sequence[object]) -> tuple[int, ...]:
    """Return the sizes of a tensor's axes. Raises LayoutError for a size that is no integer, negative, or huge."""
    numbers = all(type(n) is int and n >= 0 for n in sizes)
    if len(sizes) > 8 or not numbers or math.prod(max(1, n) for n in sizes) > _MOST_SIZE:  # type: ignore[call-overload]
        raise LayoutError(f"{file}: {name} has the shape {str(sizes)[:80]}, which no tensor has; the file is damaged")
    return tuple(sizes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Fragment:
    """Tensor in a file of another project (`stored`) that is part of a larger tensor. first: index of its first value in the larger
    one, by axis. rows: number of its rows that are used, from the first on; None: all."""

    stored: FileTensor
    first: tuple[int, ...]
    rows: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the rows that are used."""
        return self.stored.shape if self.rows is None else (self.rows, *self.stored.shape[1:])


@dataclass(frozen=True)
class Joined:
    """Whole tensor of another project, joined from fragments of files. parts: number of files with a fragment, for messages.

    same: copies of the only fragment, which are compared with it when it is read. A difference is logged as a warning, or raises
    LayoutError if `strict`.
    """

    shape: tuple[int, ...]
    fragments: Sequence[Fragment]
    same: Sequence[FileTensor] = ()
    strict: bool = False
    parts: int = 1

    def assembled(self, name: str, transposed: bool = False) -> LazyArray:
        """Return the tensor `name` of a model, which is joined when it is read. Raises LayoutError if the fragments have different
        dtypes or do not fill the shape."""
        first = self.fragments[0].stored
        for stored in [fragment.stored for fragment in self.fragments]:
            if stored.kind not in KINDS:
                raise LayoutError(
                    f"{stored.origin} ({name}) is {stored.kind}; weights are read as {', '.join(KINDS)}: convert it"
                )
            if stored.kind != first.kind:
                raise LayoutError(f"{stored.origin} is {stored.kind}, {first.origin} is {first.kind}; {MIXED}")
        if not self._is_filled():
            raise LayoutError(
                f"{first.origin} and {len(self.fragments) - 1} more do not fill {name} of shape {self.shape}; take the whole "
                "release"
            )
        shape = self.shape[::-1] if transposed else self.shape
        return LazyArray(shape, KINDS[first.kind], partial(self._slices, transposed), origin=first.origin)

    def _is_filled(self) -> bool:
        """Return True if every fragment is inside and no two begin at one position; with equal counts, they then fill the whole."""
        inside = all(
            len(f.shape) == len(self.shape)
            and all(at + n <= whole for at, n, whole in zip(f.first, f.shape, self.shape, strict=True))
            for f in self.fragments
        )
        sizes = [math.prod(fragment.shape) for fragment in self.fragments]
        corners = [fragment.first for fragment, size in zip(self.fragments, sizes, strict=True) if size]
        return inside and sum(sizes) == math.prod(self.shape) and len(set(corners)) == len(corners)

    def _slices(self, transposed: bool) -> Iterator[np.ndarray]:
        """Yield slices of rows, or of columns where the tensor is transposed."""
        kind = self.fragments[0].stored.kind
        dtype, axis = KINDS[kind], len(self.shape) - 1 if transposed else 0
        if not self.shape:
            yield _decoded(self.fragments[0].stored.values(), kind)
            return
        row = max(1, math.prod(self.shape) // max(1, self.shape[axis]) * dtype.itemsize)
        length = max(1, _SLICE // row)
        for begin in range(0, self.shape[axis], length):
            end = min(begin + length, self.shape[axis])
            values = np.empty((*self.shape[:axis], end - begin, *self.shape[axis + 1 :]), dtype)
            for fragment in self.fragments:
                _fill(values, fragment, axis, begin, end)
            self._compare(values, begin, end)
            yield values.T if transposed else values
        if 0 in self.shape:
            yield np.empty((0,), dtype)

    def _compare(self, values: np.ndarray, begin: int, end: int) -> None:
        """Log a warning, or raise LayoutError if strict, for a copy with other values."""
        for other in self.same:
            copy = _decoded(other.values()[begin:end], other.kind)
            if not np.array_equal(values, copy, equal_nan=True):
                first = self.fragments[0].stored
                if self.strict:
                    raise LayoutError(f"{other.origin} is not equal to {first.name}, as it must be: it cannot be used")
                most = np.nanmax(np.abs(values.astype(np.float64) - copy)) if values.size else 0.0
                logger.warning(
                    "%s differs from %s by up to %g; both should be one tensor: the latter is taken",
                    *(other.origin, first.origin, most),
                )


def only(stored: FileTensor) -> Joined:
    """Return the `Joined` of a tensor that one file holds as a whole: its single fragment."""
    return Joined(stored.shape, [Fragment(stored, (0,) * len(stored.shape))])


def _fill(values: np.ndarray, fragment: Fragment, axis: int, begin: int, end: int) -> None:
    """Copy the values that a fragment has in the slice from `begin` to `end` of an axis."""
    at, n = fragment.first[axis], fragment.shape[axis]
    low, high = max(begin, at), min(end, at + n)
    if low >= high:
        return
    target = [slice(first, first + size) for first, size in zip(fragment.first, fragment.shape, strict=True)]
    source = [slice(0, size) for size in fragment.shape]
    target[axis], source[axis] = slice(low - begin, high - begin), slice(low - at, high - at)
    values[tuple(target)] = _decoded(fragment.stored.values()[tuple(source)], fragment.stored.kind)


def _decoded(values: np.ndarray, kind: str) -> np.ndarray:
    """Return bfloat16 values as float32, all others unchanged."""
    if kind != "bfloat16":
        return values
    return (values.astype(np.uint32) << 16).view(np.float32)
