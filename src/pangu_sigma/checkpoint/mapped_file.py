"""Memory-mapped files that keep no file descriptor open.

Python's own `mmap` holds a duplicate of its file's descriptor, so a model of dozens of layers, with a file and many arrays each,
would not open under the usual limit of 1,024.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path

import numpy as np

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_FAILED = ctypes.c_void_p(-1).value
_MAP_NORESERVE = 0x4000
"""Flag of Linux for a map that may be larger than the memory."""


class _Region:
    """Mapped region of memory for NumPy; it is unmapped when the last array in it is deleted."""

    def __init__(self, address: int, size: int):
        self.__array_interface__ = {"data": (address, False), "shape": (size,), "typestr": "|u1", "version": 3}
        weakref.finalize(self, _LIBC.munmap, address, size).atexit = False  # threads may still read then


def map_file(path: Path) -> np.ndarray:
    """Map the bytes of a file, uint8; writing to them changes memory and never the file. Raises OSError."""
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if not size:  # which cannot be mapped
            return np.empty(0, np.uint8)
        flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
        address = _LIBC.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, stream.fileno(), 0)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return np.asarray(_Region(address, size))


def release_pages(values: np.ndarray) -> None:
    """Release the memory of an array of a mapped file; the next access reads the file again.

    Values written to the array may be lost. Pages that the array shares with its neighbours in the file stay in memory.
    """
    base: object = values
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, _Region):
        first, end = np.byte_bounds(values)
        first, end = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if end > first:
            _LIBC.madvise(first, end - first, mmap.MADV_DONTNEED)
