"""Arrays that are made while they are written or read, so that no more than one tensor of a model need be in memory.

A checkpoint may be larger than the memory: an expert layer that is one FFN many times over, or a parameter that lies in 512 files.
What saves and loads takes a `LazyArray` where it takes a NumPy array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pangu_sigma.checkpoint.mapped_file import release_pages


@dataclass(frozen=True)
class LazyArray:
    """An array whose values are made when they are asked for, every time anew.

    content: gives arrays whose values, one after another, are those of the whole in C order.
    origin: where they come from, for messages, such as a file and the name in it.
    holes: True if all values are zero, and a file may leave them out.
    row: gives a row of the first axis by its number, where that can be read alone.
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
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize

    def read(self) -> np.ndarray:
        """All of its values. Where `content` gives one array, that one; else the whole and one of them are in memory."""
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
        """An array that is there already; the memory of a mapped one is given back when it was read."""

        def content() -> Iterator[np.ndarray]:
            yield values
            release_pages(values)

        return cls(values.shape, values.dtype, content, origin, row=values.__getitem__)

    def part(self, number: int, origin: str) -> LazyArray:
        """A row of the first axis. Its memory is given back when it was read."""
        row = self.row
        assert row is not None

        def content() -> Iterator[np.ndarray]:
            values = row(number)
            yield values
            release_pages(values)

        return LazyArray(self.shape[1:], self.dtype, content, origin)

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: np.dtype | str) -> LazyArray:
        """An array of zeros, which takes neither memory nor room in a file."""

        def content() -> Iterator[np.ndarray]:
            chunk, left = np.zeros(_ZEROS, dtype), math.prod(shape)
            for first in range(0, left, _ZEROS):
                yield chunk[: min(_ZEROS, left - first)]

        return cls(shape, np.dtype(dtype), content, "zeros", holes=True)


_ZEROS = 1 << 20
"""Number of values of the one array that `zeros` gives again and again."""

AnyArray = np.ndarray | LazyArray
