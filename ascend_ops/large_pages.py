"""Arrays in large memory pages: decoding reads all weights for each token, and small pages make that up to 1.7 times as slow."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import numpy as np

_PAGE, _BLOCK = 2 << 20, 32 << 20
_ALIGNED = 64
"""Alignment of an array in bytes, a cache line; NumPy's is 16, with which vectors cross two lines."""


class LargePages:
    """Allocator of arrays in large pages, or in ordinary ones where there are none. Memory lives as long as any of its arrays."""

    def __init__(self) -> None:
        self._block, self._used = np.empty(0, np.uint8), 0

    def zeros(self, shape: tuple[int, ...], dtype: type | str = np.float32) -> np.ndarray:
        """Allocate an array of zeros; its pages take memory when they are first written."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if self._used + size > len(self._block):
            self._block, self._used = _allocate(max(size, _BLOCK)), 0
        array = self._block[self._used : self._used + size].view(dtype).reshape(shape)
        self._used += -(-size // _ALIGNED) * _ALIGNED  # rounded up
        return array


def _allocate(size: int) -> np.ndarray:
    """Return `size` bytes of zeros that begin with a large page, if the kernel has large pages."""
    pages = mmap.mmap(-1, size + _PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # the kernel has none
            pages.madvise(mmap.MADV_HUGEPAGE)
    room = np.frombuffer(pages, np.uint8)
    return room[-room.ctypes.data % _PAGE :][:size]
