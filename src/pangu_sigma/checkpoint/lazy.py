"""Lazy arrays of a checkpoint: values are computed while they are written or read, because a checkpoint may be larger than memory.

Savers and loaders accept a `LazyArray` wherever they accept a NumPy array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pangu_sigma.checkpoint.mapped_file import release_pages


@dataclass(frozen=True)
class LazyArray:
    """Array of a checkpoint whose values are computed at each access.

    content: yields arrays whose values, end to end, are those of the whole array in C order.
    origin: source of the values for messages, such as a file and the name in it.
    holes: True if all values are zero, so that a file may leave them out (sparse file).
    row: returns a row of the first axis by its index; None if rows cannot be read alone.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    content: Callable[[], Iterable[np.ndarray]]
    origin: str = ""
    holes: bool = False
    row: Callable[[int], np.ndarray] | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Return all values. If `content` yields one array, it is returned itself; several are copied into the whole one by one."""
        whole, position = None, 0
        for values in self.content():
            flat = np.asarray(values, self.dtype)
            if whole is None:
                if flat.size == self.size:
                    return flat.reshape(self.shape)
                whole = np.empty(self.size, self.dtype)
            whole[position : position + flat.size] = flat.reshape(-1)
            position += flat.size
        if whole is None or position != self.size:
            raise ValueError(f"{self.origin or 'array'}: {position} of {self.size} values")
        return whole.reshape(self.shape)

    @classmethod
    def of(cls, values: np.ndarray, origin: str = "") -> LazyArray:
        """Wrap an existing array as a lazy one; the memory of a mapped array is released after each read."""

        def content() -> Iterator[np.ndarray]:
            yield values
            release_pages(values)

        return cls(values.shape, values.dtype, content, origin, row=values.__getitem__)

    def part(self, number: int, origin: str) -> LazyArray:
        """Return a row of the first axis as a lazy array, whose memory is released after each read."""
        row = self.row
        assert row is not None

        def content() -> Iterator[np.ndarray]:
            values = row(number)
            yield values
            release_pages(values)

        return LazyArray(self.shape[1:], self.dtype, content, origin)

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: np.dtype | str) -> LazyArray:
        """Return a lazy array of zeros, which needs neither memory nor space in a file."""

        def content() -> Iterator[np.ndarray]:
            chunk, left = np.zeros(_ZEROS, dtype), math.prod(shape)
            for first in range(0, left, _ZEROS):
                yield chunk[: min(_ZEROS, left - first)]

        return cls(shape, np.dtype(dtype), content, "zeros", holes=True)


_ZEROS = 1 << 20
"""Number of values of the array that `zeros` yields repeatedly."""

AnyArray = np.ndarray | LazyArray
