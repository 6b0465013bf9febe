"""Token files in Megatron's `.bin`/`.idx` format, which MindFormers and Megatron can read too.

`.bin`: the ids of all documents, int32 little-endian, end to end. `.idx`: magic MMIDIDX, version 1, dtype code 4, number of
sequences N and of document bounds, then int32 [N] lengths, int64 [N] byte offsets, int64 [N + 1] document bounds. MindFormers
writes the same bytes, but importing it takes seconds. Ids are read with `pread` and not through a memory map: a truncated file then
raises an error that names the file, and no SIGBUS; reading is as fast.

The index must be the one that follows from its lengths. If hashes are given, each *chunk* of a `.bin` is verified when it is first
read, and again after the file has changed.
"""

from __future__ import annotations

import os
import struct
import weakref
from array import array
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
import xxhash

from pangu_sigma.errors import DataError, remedy

CHUNK_BYTES = 1 << 20
"""Bytes of a chunk of a `.bin`, the unit of hashing and verification: the first sample of a chunk waits for 1 MiB at most."""

_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_INT32_CODE = 4

_FIX = "the file was cut short or altered; run prepare-data again"


def paths_of(prefix: Path) -> tuple[Path, Path]:
    """Return the paths of a token file: (`prefix`.bin, `prefix`.idx)."""
    return prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")


def write_tokens(prefix: Path, documents: Iterable[Sequence[int] | np.ndarray]) -> None:
    """Write documents to a token file, each as one sequence. documents: token ids of each document, with its <eot>."""
    data, index = paths_of(prefix)
    lengths = array("i")
    with data.open("wb") as file:
        for ids in documents:
            lengths.append(len(ids))
            file.write(np.asarray(ids, "<i4").tobytes())
    index.write_bytes(_index_of(np.array(lengths, "<i4")))


def _index_of(lengths: np.ndarray) -> bytes:
    """Return the content of an `.idx`. lengths: number of tokens of each document, int32 little-endian."""
    ends = 4 * np.cumsum(lengths, dtype="<i8")
    bounds = np.arange(len(lengths) + 1, dtype="<i8")
    header = _HEADER.pack(_MAGIC, 1, _INT32_CODE, len(lengths), len(bounds))
    return header + lengths.tobytes() + (ends - 4 * lengths).tobytes() + bounds.tobytes()


def hashes_of_chunks(path: Path) -> list[str]:
    """Return the xxh3_128 hash of every chunk (CHUNK_BYTES) of a file. Raises OSError."""
    with path.open("rb") as file:
        return [xxhash.xxh3_128_hexdigest(chunk) for chunk in iter(lambda: file.read(CHUNK_BYTES), b"")]


class TokenFile:
    """Token file of one domain and split, opened for reading as one array of tokens.

    tokens: number of tokens. documents: number of documents. lengths: number of tokens of each document, int32.
    chunks: hash of every `chunk_bytes` bytes, as in `hashes_of_chunks`; None: what is read is not checked. vocabulary: size V;
    every id of a chunk must be in 0 … V - 1. Raises DataError with file and byte offset if the index is damaged or does not fit.
    """

    def __init__(
        self,
        prefix: Path,
        vocabulary: int = 1 << 31,
        chunks: Sequence[str] | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.path, self._index_path = paths_of(prefix)
        self.lengths = self._read_index()
        self.documents = len(self.lengths)
        self.tokens = int(self.lengths.sum(dtype=np.int64))
        self._vocabulary, self._chunks, self._chunk_bytes = vocabulary, chunks, chunk_bytes
        try:
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}; {remedy(error, 'run prepare-data first')}") from error
        weakref.finalize(self, os.close, self._file)
        self._seen = self._stamp()
        self._verified: set[int] = set()
        size = self._seen[0]
        if size != 4 * self.tokens:
            raise DataError(
                f"{self.path}: has {size} bytes, {self.tokens} tokens need {4 * self.tokens}; "
                f"first difference at byte {min(size, 4 * self.tokens)}; {_FIX}"
            )

    def read(self, start: int, length: int) -> np.ndarray:
        """Read the tokens start … start + length - 1, int32 [length]. Raises DataError if their chunk is damaged."""
        if start < 0 or length < 0 or start + length > self.tokens:
            raise IndexError(f"{self.path}: tokens {start} … {start + length} asked for, there are 0 … {self.tokens}")
        if self._chunks is not None and length:
            self._verify(self._chunks, 4 * start // self._chunk_bytes, (4 * (start + length) - 1) // self._chunk_bytes)
        return self._ids(start, length)

    def _verify(self, chunks: Sequence[str], first: int, last: int) -> None:
        """Check those of the chunks first … last that were not checked since the file changed. chunks: hashes of all."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            self._verified.clear()
        for number in {*range(first, last + 1)} - self._verified:
            self._verify_chunk(chunks[number] if number < len(chunks) else "", number)
            self._verified.add(number)

    def _verify_chunk(self, expected: str, number: int) -> None:
        begin = number * self._chunk_bytes
        end = min(begin + self._chunk_bytes, 4 * self.tokens)
        ids = self._ids(begin // 4, (end - begin) // 4)
        if xxhash.xxh3_128_hexdigest(ids.data) != expected:
            raise DataError(
                f"{self.path}: bytes {begin} … {end - 1} are not what prepare-data wrote (their content hash differs); {_FIX}"
            )
        most = self._vocabulary - 1
        wrong = np.flatnonzero((ids < 0) | (ids > most))
        if len(wrong):
            at, token = begin // 4 + int(wrong[0]), ids[wrong[0]]
            raise DataError(f"{self.path}: token {at} (byte {4 * at}) is {token}, not in 0 … {most}; {_FIX}")

    def _ids(self, start: int, length: int) -> np.ndarray:
        """Read the tokens start … start + length - 1 without checks, int32 [length]."""
        ids = np.empty(length, "<i4")
        left = ids.data.cast("B") if length else memoryview(b"")
        at = 4 * start
        try:
            while left and (count := os.preadv(self._file, [left], at)):
                left, at = left[count:], at + count
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read at byte {at}: {error.strerror}; check the disk") from error
        if left:
            raise DataError(f"{self.path}: ends at byte {at}, {4 * self.tokens} were there before; {_FIX}")
        return ids

    def _stamp(self) -> tuple[int, int]:
        """Return size and modification time of the `.bin`."""
        status = os.fstat(self._file)
        return status.st_size, status.st_mtime_ns

    def _read_index(self) -> np.ndarray:
        path = self._index_path
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; {remedy(error, 'run prepare-data first')}") from error
        documents = max(0, len(data) - len(_index_of(np.empty(0, "<i4")))) // 20  # a length, an offset and a bound each
        lengths = np.frombuffer(data[_HEADER.size :][: 4 * documents], "<i4").copy()
        if (right := _index_of(lengths)) != data:
            at = next(i for i, (one, other) in enumerate(zip_longest(data, right)) if one != other)
            raise DataError(f"{path}: is no index of {len(data)} bytes; first difference at byte {at}; {_FIX}")
        return lengths
