"""Reader of a domain's files: they are verified as they are read, and the shards of a split are one array of tokens.

The file `hashes` of a domain's folder has the hash of every *chunk* of every other file but the manifest, which has the hash of
`hashes`. Each read of a file reads the chunks that it touches whole and compares them with their hashes, so what it returns is what
was written, whatever happened to the file since the last read. Nothing is kept between reads, neither open files nor what was
verified: threads can read at the same time, and thousands of shards need no more files than are read at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from pangu_sigma.data.indexed import lengths_of
from pangu_sigma.data.manifest import MANIFEST_FILE
from pangu_sigma.errors import DataError, in_words

CHUNK_BYTES = 128 << 10
"""Bytes of a chunk. Our choice: every sample reads a chunk, so larger ones ask more of the storage; the hashes of 1.2 TB in
smaller ones take more than 75 MB of memory."""
HASHES_NAME = "hashes"
HASH_BYTES = 8
"""Bytes of a chunk's hash, xxh3_64."""
_FIX = "the file was cut short or altered; remove the folder and run prepare-data again"


def chunks_of(size: int) -> int:
    """Return the number of chunks of a file of `size` bytes."""
    return -(-size // CHUNK_BYTES)


def write_hashes(folder: Path) -> tuple[dict[str, int], str]:
    """Write the file `hashes` for the files of a folder. Return their sizes by name, and the hash of `hashes`. Raises OSError."""
    hashes, sizes = bytearray(), dict[str, int]()
    for path in sorted(folder.iterdir()):
        if path.name in (HASHES_NAME, MANIFEST_FILE):
            continue
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                hashes += xxhash.xxh3_64_digest(chunk)
            sizes[path.name] = file.tell()
    (folder / HASHES_NAME).write_bytes(hashes)
    return sizes, xxhash.xxh3_128_hexdigest(hashes)


class VerifiedFile:
    """File of which every read is compared with the hashes of its chunks. size: its bytes.

    Raises DataError if it is missing or has another size than was written.
    """

    def __init__(self, path: Path, size: int, hashes: bytes) -> None:
        """hashes: of the chunks of the file, end to end."""
        self.path, self.size, self._hashes = path, size, hashes
        try:
            actual_size = path.stat().st_size
        except OSError as error:
            raise DataError(in_words(error, path, "remove the folder and run prepare-data again")) from error
        if actual_size != size:
            raise DataError(
                f"{path}: has {actual_size} bytes, {size} were written; first difference at byte {min(actual_size, size)}; {_FIX}"
            )

    def read(self, begin: int = 0, end: int | None = None) -> bytes:
        """Return the bytes from `begin` to `end`, by default all. Raises DataError if a chunk of them is not what was written."""
        end = self.size if end is None else end
        first = begin // CHUNK_BYTES
        try:
            with self.path.open("rb") as file:
                file.seek(first * CHUNK_BYTES)
                chunks = [self._checked(file.read(CHUNK_BYTES), number) for number in range(first, chunks_of(end))]
        except OSError as error:
            raise DataError(in_words(error, self.path, "check the disk")) from error
        content = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return content[begin - first * CHUNK_BYTES : end - first * CHUNK_BYTES]

    def check(self) -> None:
        """Read and verify all of it. Raises DataError as `read`."""
        for begin in range(0, self.size, CHUNK_BYTES):
            self.read(begin, min(begin + CHUNK_BYTES, self.size))

    def _checked(self, chunk: bytes, number: int) -> bytes:
        begin = number * CHUNK_BYTES
        end = min(begin + CHUNK_BYTES, self.size)
        if begin + len(chunk) < end:
            raise DataError(f"{self.path}: ends at byte {begin + len(chunk)}, {self.size} were there before; {_FIX}")
        if xxhash.xxh3_64_digest(chunk) != self._hashes[HASH_BYTES * number : HASH_BYTES * (number + 1)]:
            raise DataError(
                f"{self.path}: bytes {begin} … {end - 1} are not what prepare-data wrote (their content hash differs); {_FIX}"
            )
        return chunk


class Tokens:
    """Tokens of a domain and split, as one array over its shards. tokens: number of tokens of all."""

    def __init__(self, shards: Sequence[tuple[VerifiedFile, VerifiedFile]], vocabulary: int):
        """shards: `.bin` and `.idx` of each, in order. vocabulary: size V; reading an id that is not in 0 … V - 1 is refused."""
        self.shards, self._vocabulary = shards, vocabulary
        ends = np.cumsum([ids.size // 4 for ids, _ in shards], dtype=np.int64)
        self._starts: list[int] = [0, *ends[:-1].tolist()]
        self.tokens = int(ends[-1])

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each document, int32. Raises DataError if an index is damaged."""
        return np.concatenate([lengths_of(index.read()) for _, index in self.shards])

    def read(self, start: int, length: int) -> np.ndarray:
        """Read the tokens start … start + length - 1, int32 [length]. Raises DataError if a chunk of them is damaged."""
        if start < 0 or length < 0 or start + length > self.tokens:
            raise IndexError(f"tokens {start} … {start + length} asked for, there are 0 … {self.tokens}")
        content, at, number = bytearray(), start, bisect_right(self._starts, start) - 1
        while at < start + length:
            file, begin = self.shards[number][0], 4 * (at - self._starts[number])
            content += file.read(begin, min(begin + 4 * (start + length - at), file.size))
            at, number = start + len(content) // 4, number + 1
        ids = np.frombuffer(content, "<i4")
        if length and not 0 <= ids.min() <= ids.max() < self._vocabulary:
            at = int(np.flatnonzero((ids < 0) | (ids >= self._vocabulary))[0])
            raise DataError(
                f"{self.shards[0][0].path}: token {start + at} is {ids[at]}, not in 0 … {self._vocabulary - 1}; {_FIX}"
            )
        return ids
