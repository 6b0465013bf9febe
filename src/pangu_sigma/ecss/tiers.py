"""Storage tiers for the arrays of an expert store: the host's memory, or files larger than it.

Both give MindSpore a parameter whose memory is the array itself, so that code above does not depend on the tier, and results are
the same bit for bit. Shape suffixes: N segments of the RRE layers, K experts stored in a segment, A active experts.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from mindspore import Parameter

from pangu_sigma.errors import UserError
from pangu_sigma.model.declare import Initializer, wrap_array

_GIB = 1 << 30
_NO_RESERVE = 0x4000
"""MAP_NORESERVE of Linux, which Python does not name: address space may be more than memory."""


class StoreError(UserError, RuntimeError):
    """Error of a file store of experts (`FileTier`) that cannot be used; the message names the key, the problem and the fix."""


@dataclass(frozen=True)
class ArraySpec:
    """Specification of an expert store's array [K, …]: one tensor of a segment's experts, or its Adam state; a row is an expert."""

    segment: int
    """Number of the segment, counted over all RRE layers; with one segment a layer, the number of the layer."""
    name: str
    kind: Literal["weight", "moment", "variance", "step"]
    shape: tuple[int, ...]
    dtype: str
    init: Initializer | None = None
    """Initialiser of one row; None: zeros."""
    replicated: bool = False
    """True if all rows are copies of one draw of `init`: experts that start as copies of one FFN. False: each row draws its own."""
    decay: bool = False
    drawn: tuple[bool, ...] = ()
    """For each expert of the segment, True if it has a row here; (): all have one. Values are drawn for all experts in order,
    so that the values of an expert are the same on any number of ranks."""

    @property
    def key(self) -> str:
        """Name of the array and of its parameter."""
        return f"experts.{self.segment}.{self.name}"

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.row_bytes

    def fill(self, array: np.ndarray) -> Iterator[None]:
        """Write the initial values into an array of zeros. Yields after every row, so that the memory of a file can be released."""
        if self.init is None:
            return
        spare_row = np.empty(self.shape[1:], self.dtype)
        if self.replicated:
            self.init(spare_row)
            for row in array:
                row[...] = spare_row
                yield
            return
        rows = iter(array)
        for has_row in self.drawn or [True] * len(array):
            self.init(next(rows) if has_row else spare_row)  # values of an expert without a row are drawn, and dropped
            yield


class HostTier:
    """Storage of an expert store's arrays in the host's memory."""

    def parameter(self, spec: ArraySpec) -> Parameter:
        """Create the parameter of an array, with its initial values."""
        array = _large_pages(spec)
        for _ in spec.fill(array):
            pass
        return wrap_array(spec.key, array, decay=spec.decay)

    def records(self, entry: int, rows: int, size: int) -> np.ndarray:
        """Return the records of an entry of `model.rows`, float32 [rows, size]: zeros, which take no room until written."""
        memory = mmap.mmap(-1, 4 * rows * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        with suppress(OSError):  # where all memory has large pages, each row would take 2 MiB
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        return np.frombuffer(memory, np.float32).reshape(rows, size)

    def reserve(self, entry: int, records: np.ndarray, keys: np.ndarray) -> None:
        """Reserve room on the disk for those records of an entry that no token met and that will be written; nothing in memory."""

    def read_ahead(self, active_A: Sequence[np.ndarray], coming_A: Sequence[np.ndarray]) -> None:
        """Start to read the experts of the coming step from their files, and release the memory of those used longest ago; nothing
        for experts in memory. active, coming: active experts of each segment in the next step to run, and in the step after it."""

    def release(self) -> None:
        """Give back memory if the values of the experts are also in files, from which the next use reads them; else do nothing."""


class UninitializedTier(HostTier):
    """Host memory of an expert store whose arrays a checkpoint fills: zeros, without drawn initial values."""

    def parameter(self, spec: ArraySpec) -> Parameter:
        """Create the parameter of an array, of zeros."""
        array = np.zeros(spec.shape, spec.dtype)  # pages of zeros: no memory until written
        return wrap_array(spec.key, array, decay=spec.decay)


class FileTier(HostTier):
    """Storage of an expert store's arrays in one memory-mapped file: more experts than memory holds.

    At most about `cache_gib` GiB stays mapped: the experts used longest ago are released. The file is working space without a name:
    it is gone when the process ends, and a run resumes from its checkpoint. Its disk space is reserved at the start, so that a full
    disk is an error here and not a crash in the middle of a step. Raises StoreError if the folder cannot be written or is full."""

    def __init__(self, folder: Path, specs: list[ArraySpec], cache_gib: float):
        """folder: where the file is made. specs: specifications of all arrays, in the order in which `parameter` is called."""
        self._budget = int(cache_gib * _GIB)
        self._specs: dict[int, list[tuple[int, ArraySpec]]] = {}  # of each segment, with the first byte of each array
        self._mapped: OrderedDict[tuple[int, int], int] = OrderedDict()  # bytes by (segment, expert), oldest use first
        self._folder, self._rows = folder, dict[int, IO[bytes]]()
        self._file = _reserve(folder, sum(map(_pages, specs)))
        # one map for all arrays: each map keeps a file descriptor, of which a process may have 1,024
        self._memory, self._used_bytes = mmap.mmap(self._file.fileno(), 0), 0

    def parameter(self, spec: ArraySpec) -> Parameter:
        """Create the parameter of the next array in the file, and release the memory of each row as soon as it is initialised."""
        start = self._used_bytes
        self._used_bytes += _pages(spec)
        self._specs.setdefault(spec.segment, []).append((start, spec))
        array = np.frombuffer(self._memory, spec.dtype, math.prod(spec.shape), start).reshape(spec.shape)
        for _ in spec.fill(array):  # the values are in the file: `madvise` drops only this process's pages
            self._memory.madvise(mmap.MADV_DONTNEED, start, spec.nbytes)
        return wrap_array(spec.key, array, decay=spec.decay)

    def records(self, entry: int, rows: int, size: int) -> np.ndarray:
        """Map the records, zeros, from a sparse file of their own."""
        file = _nameless(self._folder)
        self._rows[entry] = file
        try:
            os.ftruncate(file.fileno(), 4 * rows * size)
            mapped = mmap.mmap(file.fileno(), 4 * rows * size)
            mapped.madvise(mmap.MADV_RANDOM)  # to read ahead in a sparse file takes milliseconds a row
            return np.frombuffer(mapped, np.float32).reshape(rows, size)
        except (OSError, ValueError) as error:
            raise StoreError(
                f"ecss.path={self._folder}: no file of {rows:,} rows, {4 * rows * size / _GIB:.1f} GiB if all are met ({error}); "
                "set ecss.path to a file system with larger files"
            ) from error

    def reserve(self, entry: int, records: np.ndarray, keys: np.ndarray) -> None:
        """Allocate disk blocks for those records that have none, so that a full disk raises StoreError here."""
        new_keys = np.unique(keys[records[keys, -1].view(np.int32) == 0])  # rows without a step
        try:
            for key in new_keys.tolist():
                # A row is written over itself, which allocates disk blocks: its weights may be `put`'s, not zeros. On ext4, after
                # posix_fallocate, the next write to the page would take 20 times as long.
                os.pwrite(self._rows[entry].fileno(), records[key].tobytes(), key * records.strides[0])
        except OSError as error:
            raise StoreError(
                f"ecss.path={self._folder}: no room for {len(new_keys)} more rows ({error.strerror}); free space, or set ecss.path "
                "to a larger disk"
            ) from error

    def read_ahead(self, active_A: Sequence[np.ndarray], coming_A: Sequence[np.ndarray]) -> None:
        """Ask the system to read the experts of the coming step, and to release the experts used longest ago beyond the budget;
        never experts that this step or the coming step needs. active, coming: active experts of each segment in these steps."""
        needed = set()
        for (segment, specs), active, coming in zip(self._specs.items(), active_A, coming_A, strict=True):
            stored, size = specs[0][1].shape[0], sum(spec.row_bytes for _, spec in specs)
            for expert in np.concatenate([active, coming]).tolist():
                if expert == stored:  # an unused entry of the list
                    continue
                needed.add((segment, expert))
                self._mapped[segment, expert] = size
                self._mapped.move_to_end((segment, expert))
            for expert in coming[coming < stored].tolist():
                self._advise(mmap.MADV_WILLNEED, segment, expert)
        total = sum(self._mapped.values())
        for (segment, expert), size in list(self._mapped.items()):
            if total <= self._budget or (segment, expert) in needed:  # needed experts are the last ones
                break
            self._advise(mmap.MADV_DONTNEED, segment, expert)
            del self._mapped[segment, expert]
            total -= size

    def release(self) -> None:
        """Give back the memory of all experts. Their values are in the files, from which the next use reads them."""
        self._memory.madvise(mmap.MADV_DONTNEED)
        self._mapped.clear()

    def _advise(self, advice: int, segment: int, expert: int) -> None:
        """Call `madvise` on the whole pages that hold an expert; a neighbour that shares a page is read again when needed."""
        for array_start, spec in self._specs[segment]:
            start, end = array_start + expert * spec.row_bytes, array_start + (expert + 1) * spec.row_bytes
            first = start - start % mmap.PAGESIZE
            self._memory.madvise(advice, first, end - first)


def _large_pages(spec: ArraySpec) -> np.ndarray:
    """Allocate zeros in large pages, if Linux has them: rows are read after a long pause, and with small pages address
    translation takes most of the time."""
    memory = mmap.mmap(-1, max(spec.nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, spec.dtype, math.prod(spec.shape)).reshape(spec.shape)


def _pages(spec: ArraySpec) -> int:
    """Return the bytes of the whole pages that hold an array."""
    return -(-spec.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _nameless(folder: Path) -> IO[bytes]:
    """Make an empty file without a name, which the system deletes when it is closed. Raises StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)  # open as long as the store
    except OSError as error:
        raise StoreError(f"ecss.path={folder}: {error.strerror}; set it to a folder that can be written") from error


def _reserve(folder: Path, nbytes: int) -> IO[bytes]:
    """Make a file without a name, of `nbytes` bytes, whose blocks are reserved."""
    file = _nameless(folder)
    try:
        os.posix_fallocate(file.fileno(), 0, max(nbytes, 1))
    except OSError as error:
        file.close()
        stats = os.statvfs(folder)
        raise StoreError(
            f"ecss.path={folder}: cannot reserve {nbytes / _GIB:.1f} GiB for the experts ({error.strerror}; "
            f"{stats.f_bavail * stats.f_frsize / _GIB:.1f} GiB are free); free space, or set ecss.path to a larger disk"
        ) from error
    return file
