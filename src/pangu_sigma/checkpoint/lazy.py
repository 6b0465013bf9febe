"""Arrays that are not in memory, because a checkpoint may be larger: mapped files, and lazy arrays, whose values are computed while
they are written or read. Savers and loaders accept a `LazyArray` wherever they accept a NumPy array.
"""

from __future__ import annotations

import math
import mmap
import resource
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

_MAP_NORESERVE = 0x4000
"""Flag of Linux for a map that may be larger than the memory."""


def map_file(path: Path) -> np.ndarray:
    """Map the bytes of a file, uint8; writing to them changes memory and never the file. Raises OSError."""
    _allow_many_files()
    with open(path, "rb") as stream:
        if not path.stat().st_size:  # which cannot be mapped
            return np.empty(0, np.uint8)
        flags, access = mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        return np.frombuffer(mmap.mmap(stream.fileno(), 0, flags, access), np.uint8)


@cache
def _allow_many_files() -> None:
    """Raise the limit of open files once: a model of dozens of layers and ranks has more files than the usual 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def release_pages(values: np.ndarray) -> None:
    """Release the memory of an array of a mapped file; the next access reads the file again.

    Values written to the array may be lost. Pages that the array shares with its neighbours in the file stay in memory.
    """
    content = values
    while isinstance(content.base, np.ndarray):
        content = content.base
    file = getattr(content.base, "obj", None)
    if isinstance(file, mmap.mmap):
        start = np.byte_bounds(content)[0]
        first, end = (at - start for at in np.byte_bounds(values))
        first, end = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if end > first:
            file.madvise(mmap.MADV_DONTNEED, first, end - first)


@dataclass(frozen=True)
class LazyArray:
    """Array of a checkpoint whose values are computed at each access.

    content: yields arrays whose values, end to end, make the whole array in C order.
    origin: source of the values for messages, such as a file and the name in it.
    row: returns a row of the first axis by its index; None if rows cannot be read alone.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    content: Callable[[], Iterable[np.ndarray]]
    origin: str = ""
    row: Callable[[int], np.ndarray] | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Return all values. If `content` yields one array, it is returned itself; several are copied into the whole one by one."""
        array = np.empty(self.shape, self.dtype)  # takes memory where it is written
        for position, flat in _pieces(self):
            if len(flat) == self.size:
                return flat.reshape(self.shape)
            array.reshape(-1)[position : position + len(flat)] = flat
        return array

    @classmethod
    def of(cls, values: np.ndarray, origin: str = "") -> LazyArray:
        """Wrap an existing array as a lazy one; the memory of a mapped array is released after each read."""
        return cls(values.shape, values.dtype, lambda: _released(lambda: values), origin, row=values.__getitem__)

    def part(self, number: int, origin: str) -> LazyArray:
        """Return a row of the first axis as a lazy array, whose memory is released after each read."""
        row = self.row
        assert row is not None
        return LazyArray(self.shape[1:], self.dtype, lambda: _released(lambda: row(number)), origin)

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: np.dtype | str) -> LazyArray:
        """Return a lazy array of zeros, which needs no memory."""
        size = math.prod(shape)
        lengths = [*[_ZEROS] * (size // _ZEROS), size % _ZEROS]
        return cls(shape, np.dtype(dtype), lambda: (np.zeros(length, dtype) for length in lengths), "zeros")


AnyArray = np.ndarray | LazyArray

_ZEROS = 1 << 20
"""Maximum number of values of the arrays that `zeros` yields."""
_CHUNK = 64 << 20
"""Maximum number of bytes of a chunk."""


def chunks(array: AnyArray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield a flattened array in chunks of at most 64 MiB, each with the position of its first value.

    Raises ValueError when a LazyArray has more or fewer values than its shape says.
    """
    length = max(1, _CHUNK // array.dtype.itemsize)
    for position, flat in _pieces(array):
        for first in range(0, len(flat), length):
            yield position + first, flat[first : first + length]


def _pieces(array: AnyArray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield what `content` yields, or an array itself, flattened, each with the position of its first value. Raises as `chunks`."""
    position = 0
    for values in array.content() if isinstance(array, LazyArray) else (array,):
        flat = np.ascontiguousarray(values, array.dtype).reshape(-1)
        yield position, flat
        position += len(flat)
    if position != array.size:
        raise ValueError(f"{getattr(array, 'origin', 'array')}: {position} of {array.size} values")


def copy_values(array: AnyArray, target: np.ndarray) -> None:
    """Copy all values into a contiguous array of the same shape. Raises as `chunks`."""
    for first, flat in chunks(array):
        target.reshape(-1)[first : first + len(flat)] = flat


def _released(read: Callable[[], np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the values that `read` returns, and release their memory when the caller asks for more."""
    values = read()
    yield values
    release_pages(values)
