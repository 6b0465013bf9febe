"""Reader of token files (indexed.py): the shards of a domain and split as one array of tokens, read by position.

Nothing is read before it is asked for: of a `.bin` its size is compared, the `.idx` is for who needs documents. Files are opened
when they are read, and the least recently used one is closed again, so that thousands of shards do not reach the limit of open
files. Ids are read with `pread` and not through a memory map: a truncated file then raises an error that names the file, and no
SIGBUS.

If hashes are given, each *chunk* of a `.bin` is verified when it is first read, and again after the file has changed. The kernel is
told that reads are in no order, so that it does not read ahead what a sample does not need. Pages stay in its cache after a chunk
was verified: the other ranks of the host verify and read the same ones.
"""

from __future__ import annotations

import os
import resource
import weakref
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pangu_sigma.data.indexed import CHUNK_BYTES, FIX, HASH_BYTES, paths_of, read_lengths
from pangu_sigma.errors import DataError, in_words

Stamp = tuple[int, int, int]
"""Size, modification time and inode of a file: if they are equal, it is taken not to have changed."""


class _Opened:
    """Open file, closed with its last reference, so that a thread can go on reading what another one pushed out."""

    def __init__(self, path: Path):
        """Raises OSError."""
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def stamp(self) -> Stamp:
        status = os.fstat(self.descriptor)
        return status.st_size, status.st_mtime_ns, status.st_ino


Opener = Callable[[Path], _Opened]
"""Function that returns an open file, the same one while it is among those used last. It can be called by several threads."""


def opener() -> Opener:
    """Return an opener that keeps an eighth of the files open that the process may open (`ulimit -n`), at least 8."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return lru_cache(1_024 if allowed == resource.RLIM_INFINITY else max(8, min(1_024, allowed // 8)))(_Opened)


class TokenFile:
    """One token file, of a domain and split or of one of its shards.

    tokens: number of tokens. Raises DataError if the `.bin` is missing or has another size.
    """

    def __init__(
        self,
        prefix: Path,
        vocabulary: int = 1 << 31,
        size: int | None = None,
        chunks: Callable[[], bytes] | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        opened: Opener | None = None,
        index_hash: str | None = None,
    ) -> None:
        """vocabulary: size V; every id of a chunk must be in 0 … V - 1. size: bytes that the `.bin` must have; None: any.
        chunks: returns the hash of every `chunk_bytes` bytes, HASH_BYTES each; None: what is read is not checked. opened: opens
        the `.bin`; files that share it share its limit. index_hash: xxh3_128 that the `.idx` must have; None:
        any."""
        self.path, self._index_path = paths_of(prefix)
        self._vocabulary, self._chunks, self._chunk_bytes = vocabulary, chunks, chunk_bytes
        self._opened, self._index_hash = opened or opener(), index_hash
        try:
            there = self.path.stat().st_size
        except OSError as error:
            raise self._cannot_open(error) from error
        if there % 4 or (size is not None and there != size):
            wrote = f"{size} were written" if size is not None else "ids have 4 each"
            at = there - there % 4 if size is None else min(there, size)
            raise DataError(f"{self.path}: has {there} bytes, {wrote}; first difference at byte {at}; {FIX}")
        self.tokens = there // 4
        self._verified: tuple[Stamp | None, np.ndarray] = (None, np.empty(0, bool))

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each document, int32. Raises DataError if the index is damaged or does not fit the `.bin`."""
        lengths = read_lengths(self._index_path, self._index_hash)
        if (indexed := int(lengths.sum(dtype=np.int64))) != self.tokens:
            raise DataError(
                f"{self.path}: has {4 * self.tokens} bytes, {indexed} tokens need {4 * indexed}; "
                f"first difference at byte {4 * min(indexed, self.tokens)}; {FIX}"
            )
        return lengths

    def read(self, start: int, length: int) -> np.ndarray:
        """Read the tokens start … start + length - 1, int32 [length]. Raises DataError if their chunk is damaged."""
        if start < 0 or length < 0 or start + length > self.tokens:
            raise IndexError(f"{self.path}: tokens {start} … {start + length} asked for, there are 0 … {self.tokens}")
        if not length:
            return np.empty(0, "<i4")
        try:
            file = self._opened(self.path)
        except OSError as error:
            raise self._cannot_open(error) from error
        if self._chunks is not None:
            first, last = 4 * start // self._chunk_bytes, (4 * (start + length) - 1) // self._chunk_bytes
            self._verify(file, self._hashes, range(first, last + 1))
        return self._ids(file, start, length)

    @cached_property
    def _hashes(self) -> bytes:
        return self._chunks() if self._chunks is not None else b""

    def _cannot_open(self, error: OSError) -> DataError:
        return DataError(in_words(error, self.path, "run prepare-data first"))

    def _verify(self, file: _Opened, hashes: bytes, numbers: range) -> None:
        """Check those chunks that were not checked since the file changed. hashes: of all chunks."""
        stamp = file.stamp()
        seen, verified = self._verified  # both at once: other threads may replace them
        if stamp != seen:
            verified = np.zeros(-(-4 * self.tokens // self._chunk_bytes), bool)
            self._verified = stamp, verified
        for number in numbers:
            if not verified[number]:
                self._verify_chunk(file, hashes[HASH_BYTES * number : HASH_BYTES * (number + 1)], number)
                verified[number] = True

    def _verify_chunk(self, file: _Opened, expected: bytes, number: int) -> None:
        begin = number * self._chunk_bytes
        end = min(begin + self._chunk_bytes, 4 * self.tokens)
        ids = self._ids(file, begin // 4, (end - begin) // 4)
        if xxhash.xxh3_128_digest(ids.data) != expected:
            raise DataError(
                f"{self.path}: bytes {begin} … {end - 1} are not what prepare-data wrote (their content hash differs); {FIX}"
            )
        most = self._vocabulary - 1
        wrong = np.flatnonzero((ids < 0) | (ids > most))
        if len(wrong):
            at, token = begin // 4 + int(wrong[0]), ids[wrong[0]]
            raise DataError(f"{self.path}: token {at} (byte {4 * at}) is {token}, not in 0 … {most}; {FIX}")

    def _ids(self, file: _Opened, start: int, length: int) -> np.ndarray:
        """Read the tokens start … start + length - 1 without checks, int32 [length]."""
        ids = np.empty(length, "<i4")
        left: Any = ids.data.cast("B")
        at = 4 * start
        try:
            while left and (count := os.preadv(file.descriptor, [left], at)):
                left, at = left[count:], at + count
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read at byte {at}: {error.strerror}; check the disk") from error
        if left:
            raise DataError(f"{self.path}: ends at byte {at}, {4 * self.tokens} were there before; {FIX}")
        return ids


class Tokens:
    """Tokens of a domain and split, as one array over its shards.

    shards: token files, in order. tokens: number of tokens of all.
    """

    def __init__(self, shards: Sequence[TokenFile]):
        self.shards = shards
        ends = np.cumsum([shard.tokens for shard in shards], dtype=np.int64)
        self._starts: list[int] = [0, *ends[:-1].tolist()]
        self.tokens = int(ends[-1])

    def read(self, start: int, length: int) -> np.ndarray:
        """Read the tokens start … start + length - 1, int32 [length]. Raises DataError if a chunk of them is damaged."""
        if start < 0 or length < 0 or start + length > self.tokens:
            raise IndexError(f"tokens {start} … {start + length} asked for, there are 0 … {self.tokens}")
        parts: list[np.ndarray] = []
        at = start
        number = bisect_right(self._starts, start) - 1
        while not parts or at < start + length:
            shard, within = self.shards[number], at - self._starts[number]
            parts.append(shard.read(within, min(start + length - at, shard.tokens - within)))
            at, number = at + len(parts[-1]), number + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
