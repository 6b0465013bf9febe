"""Memory-mapped files as NumPy arrays. Each map holds a file descriptor, so the limit of open files is raised as far as it goes."""

from __future__ import annotations

import mmap
import resource
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
    whole = values
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    file = getattr(whole.base, "obj", None)
    if isinstance(file, mmap.mmap):
        start = np.byte_bounds(whole)[0]
        first, end = (at - start for at in np.byte_bounds(values))
        first, end = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if end > first:
            file.madvise(mmap.MADV_DONTNEED, first, end - first)
