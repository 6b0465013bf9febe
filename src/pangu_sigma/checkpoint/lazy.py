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
        if path.stat().st_size == 0:  # an empty file cannot be mapped
            return np.empty(0, np.uint8)
        flags, access = mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        return np.frombuffer(mmap.mmap(stream.fileno(), 0, flags, access), np.uint8)


@cache
def _allow_many_files() -> None:
    """Raise the limit of open files once: a model of dozens of layers and ranks has more files than the usual 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def release_pages(values: np.ndarray) -> None:
    """Release the memory of an array of a mapped file; the next access reads the file again. Other arrays are left alone.

    Values written to the array may be lost. Pages that the array shares with its neighbours in the file stay in memory.
    """
    mapped_bytes = values  # the array of `map_file`, of which `values` is a view
    while isinstance(mapped_bytes.base, np.ndarray):
        mapped_bytes = mapped_bytes.base
    file = getattr(mapped_bytes.base, "obj", None)  # NumPy reaches a map through a memoryview
    if isinstance(file, mmap.mmap):
        start = np.byte_bounds(mapped_bytes)[0]
        first, end = (address - start for address in np.byte_bounds(values))
        # rounded inwards to whole pages
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
        """Return all values. A single array of `content` is returned without a copy; several are copied into one."""
        array = np.empty(self.shape, self.dtype)  # the system reserves a page of memory only when it is written
        for position, flat in _flat_arrays(self):
            if len(flat) == self.size:
                return flat.reshape(self.shape)
            array.reshape(-1)[position : position + len(flat)] = flat
        return array

    @classmethod
    def of(cls, values: np.ndarray, origin: str = "") -> LazyArray:
        """Wrap an existing array as a lazy one; the memory of a mapped array is released after each read."""
        return cls(values.shape, values.dtype, lambda: _read_and_release(lambda: values), origin, values.__getitem__)

    def part(self, number: int, origin: str) -> LazyArray:
        """Return a row of the first axis as a lazy array, whose memory is released after each read."""
        row = self.row
        assert row is not None
        return LazyArray(self.shape[1:], self.dtype, lambda: _read_and_release(lambda: row(number)), origin)

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
    for position, flat in _flat_arrays(array):
        for first in range(0, len(flat), length):
            yield position + first, flat[first : first + length]


def _flat_arrays(array: AnyArray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield pairs (position, values): the arrays of a LazyArray's `content`, or a NumPy array itself, flattened, each with the
    position of its first value in the whole. Raises as `chunks`."""
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


def _read_and_release(read: Callable[[], np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the one array that `read` returns; release its memory, if it is of a mapped file, when the caller asks for the next."""
    values = read()
    yield values
    release_pages(values)
