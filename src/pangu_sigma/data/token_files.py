"""Token files in Megatron's `.bin`/`.idx` format, which MindFormers and Megatron can read too: writer, hashes and verified reader.

`.bin`: the ids of all documents, int32 little-endian, end to end. `.idx`: magic MMIDIDX, version 1, dtype code 4, number of
sequences N and of document bounds, then int32 [N] lengths, int64 [N] byte offsets, int64 [N + 1] document bounds. MindFormers
writes the same bytes, but importing it takes seconds.

Text of more than TOKEN_SHARD_BYTES is cut into *shards*, token files of their own, between documents: `train.bin` is then
`train.00000.bin`, `train.00001.bin`, …, which are read as one array of tokens.

The file `hashes` of a domain's folder has the hash of every *chunk* of every other file but the manifest, which has the hash of
`hashes`. A read verifies the chunks that it touches, and keeps neither open files nor what was verified: damage since the last read
is noticed, threads can read at the same time, and thousands of shards need no more files than are read at once.
"""

from __future__ import annotations

import re
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from pangu_sigma.data.manifest import MANIFEST_FILE
from pangu_sigma.errors import DataError, in_words

TOKEN_SHARD_BYTES = 4 << 30
"""Bytes of a `.bin` at which the next shard begins. Our choice: 1.2 TB are 300 shards."""

_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_INT32_CODE = 4

CHUNK_BYTES = 128 << 10
"""Bytes of a chunk. Our choice: every sample reads a chunk, so larger ones ask more of the storage; the hashes of 1.2 TB in
smaller ones take more than 75 MB of memory."""
HASHES_NAME = "hashes"
HASH_BYTES = 8
"""Bytes of a chunk's hash, xxh3_64."""
_FIX = "the file was cut short or altered; remove the folder and run prepare-data again"


def paths_of(prefix: Path) -> tuple[Path, Path]:
    """Return the paths of a token file: (`prefix`.bin, `prefix`.idx)."""
    return prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")


def token_shards(name: str, files: Collection[str]) -> list[str]:
    """Return the names of the shards of a split, in order; [] if there are none. name: name of the split, such as `train`. files:
    names of all files of the folder, such as train.bin and train.idx, or train.00000.bin, …."""
    pattern = re.compile(rf"({re.escape(name)}(?:\.\d+)?)\.bin")
    shards = [match[1] for match in map(pattern.fullmatch, files) if match]
    return sorted(shards, key=lambda shard: (len(shard), shard))  # by number, also if it has more than five digits


def write_tokens(prefix: Path, documents: Iterable[Sequence[int] | np.ndarray], shard_bytes: int | None = None) -> None:
    """Write documents to shards, token files of a domain and split. Raises OSError.

    A shard ends with the document that reaches `shard_bytes`. A single shard is named `prefix`.bin and `prefix`.idx, several are
    numbered. documents: token ids of each document, <eot> included; only the lengths of one shard's documents are in memory.
    shard_bytes: None: TOKEN_SHARD_BYTES."""
    limit, shards = TOKEN_SHARD_BYTES if shard_bytes is None else shard_bytes, 0
    iterator = iter(documents)
    ids = next(iterator, None)
    while ids is not None or shards == 0:  # no documents make one empty shard
        shard, lengths = prefix.with_name(f"{prefix.name}.{shards:05d}"), array("i")
        token_path, index_path = paths_of(shard)
        with token_path.open("wb") as file:
            while ids is not None and (not lengths or file.tell() < limit):
                lengths.append(len(ids))
                file.write(np.asarray(ids, "<i4").tobytes())
                ids = next(iterator, None)
        index_path.write_bytes(index_of(np.asarray(lengths, "<i4")))
        shards += 1
    if shards == 1:
        for numbered_path, path in zip((token_path, index_path), paths_of(prefix), strict=True):
            numbered_path.rename(path)


def index_of(lengths: np.ndarray) -> bytes:
    """Return the content of an `.idx`. lengths: number of tokens of each document, int32 little-endian."""
    ends = 4 * np.cumsum(lengths, dtype="<i8")  # in bytes, 4 for a token
    bounds = np.arange(len(lengths) + 1, dtype="<i8")
    header = _HEADER.pack(_MAGIC, 1, _INT32_CODE, len(lengths), len(bounds))
    return header + lengths.tobytes() + (ends - 4 * lengths).tobytes() + bounds.tobytes()


def lengths_of(index: bytes) -> np.ndarray:
    """Return the number of tokens of each document, int32, from the content of an `.idx` that `index_of` returned."""
    _, _, _, documents, _ = _HEADER.unpack_from(index)
    return np.frombuffer(index, "<i4", documents, _HEADER.size)


def chunks_of(size: int) -> int:
    """Return the number of chunks, stretches of CHUNK_BYTES, of a file of `size` bytes."""
    return -(-size // CHUNK_BYTES)


def write_hashes(folder: Path) -> tuple[dict[str, int], str]:
    """Write the file `hashes`, the hashes of all chunks of a folder's files in the order of names. Return the sizes of the files by
    name, and the hash of `hashes`. Raises OSError."""
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
    """File of which every read is compared with the hashes of its chunks. size: its bytes. Raises DataError if it is missing or has
    another size than was written."""

    def __init__(self, path: Path, size: int, hashes: bytes) -> None:
        """hashes: hashes of the chunks of the file, HASH_BYTES each, end to end."""
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
        """Return the bytes begin … end - 1, by default all. Raises DataError if a chunk that has some of them was altered."""
        end = self.size if end is None else end
        first = begin // CHUNK_BYTES  # whole chunks are read, because each hash is of a whole chunk
        try:
            with self.path.open("rb") as file:
                file.seek(first * CHUNK_BYTES)
                chunks = [self._verify_chunk(file.read(CHUNK_BYTES), number) for number in range(first, chunks_of(end))]
        except OSError as error:
            raise DataError(in_words(error, self.path, "check the disk")) from error
        content = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return content[begin - first * CHUNK_BYTES : end - first * CHUNK_BYTES]

    def check(self) -> None:
        """Read and verify the whole file, a chunk at a time. Raises DataError as `read`."""
        for begin in range(0, self.size, CHUNK_BYTES):
            self.read(begin, min(begin + CHUNK_BYTES, self.size))

    def _verify_chunk(self, chunk: bytes, number: int) -> bytes:
        """Return the content of the chunk `number` as it was read. Raises DataError if it is too short or has another hash."""
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
        """shards: `.bin` and `.idx` of each shard, in order. vocabulary: V; `read` refuses ids that are not in 0 … V - 1."""
        self.shards, self._vocabulary = shards, vocabulary
        ends = np.cumsum([token_file.size // 4 for token_file, _ in shards], dtype=np.int64)  # in tokens of 4 bytes
        self._starts: list[int] = [0, *ends[:-1].tolist()]
        self.tokens = int(ends[-1])

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each document, int32. Raises DataError if an index is damaged."""
        return np.concatenate([lengths_of(index.read()) for _, index in self.shards])

    def read(self, start: int, length: int) -> np.ndarray:
        """Read the tokens start … start + length - 1, int32 [length]. Raises DataError for a damaged chunk and for an id that is
        not in the vocabulary, IndexError for tokens that are not there."""
        end = start + length
        if start < 0 or length < 0 or end > self.tokens:
            raise IndexError(f"tokens {start} … {end} asked for, there are 0 … {self.tokens}")
        content, first_shard = bytearray(), bisect_right(self._starts, start) - 1
        for shard in range(first_shard, bisect_left(self._starts, end) if length else first_shard):
            (token_file, _), first = self.shards[shard], self._starts[shard]
            content += token_file.read(4 * max(0, start - first), min(4 * (end - first), token_file.size))
        ids = np.frombuffer(content, "<i4")
        invalid = np.flatnonzero((ids < 0) | (ids >= self._vocabulary))
        if len(invalid):
            raise DataError(
                f"{self.shards[0][0].path}: token {start + invalid[0]} is {ids[invalid[0]]}, not in 0 … {self._vocabulary - 1}; "
                f"{_FIX}"
            )
        return ids
