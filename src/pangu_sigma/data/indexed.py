"""Token files in Megatron's `.bin`/`.idx` format, which MindFormers and Megatron can read too: their names, their content, and the
writer. The reader is token_files.py.

`.bin`: the ids of all documents, int32 little-endian, end to end. `.idx`: magic MMIDIDX, version 1, dtype code 4, number of
sequences N and of document bounds, then int32 [N] lengths, int64 [N] byte offsets, int64 [N + 1] document bounds. MindFormers
writes the same bytes, but importing it takes seconds.

Text of more than TOKEN_SHARD_BYTES is cut into *shards*, token files of their own, between documents: `zh.train.bin` is then
`zh.train.00000.bin`, `zh.train.00001.bin`, …
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from itertools import zip_longest
from pathlib import Path

import numpy as np
import xxhash

from pangu_sigma.errors import DataError, in_words

CHUNK_BYTES = 256 << 10
"""Bytes of a chunk of a `.bin`, the unit of hashing and verification. Our choice: the first sample of a chunk reads it whole, so
larger ones ask more of a shared storage in a run's first hours; the hashes of 1.2 TB of smaller ones take more than 75 MB."""
HASH_BYTES = 16
"""Bytes of a chunk's hash, xxh3_128."""
TOKEN_SHARD_BYTES = 4 << 30
"""Bytes of a `.bin` at which the next shard begins. Our choice: 1.2 TB are 300 shards."""

_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_INT32_CODE = 4

FIX = "the file was cut short or altered; run prepare-data again"
"""Advice to the user for a damaged token file."""


def paths_of(prefix: Path) -> tuple[Path, Path]:
    """Return the paths of a token file: (`prefix`.bin, `prefix`.idx)."""
    return prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")


def token_shards(name: str, files: Collection[str]) -> list[str]:
    """Return the names of the token files of a domain and split, in order; [] if there are none.

    name: name of the only one, such as `zh.train`. files: names of all files of the folder.
    """
    if f"{name}.bin" in files:
        return [name]
    shards: list[str] = []
    while f"{_shard(name, len(shards))}.bin" in files:
        shards.append(_shard(name, len(shards)))
    return shards


def _shard(name: str, number: int) -> str:
    return f"{name}.{number:05d}"


class ShardWriter:
    """Writer of documents to the token files of a domain and split. It holds the lengths of one shard's documents in memory.

    A shard ends with the document that reaches `shard_bytes`. The only shard is `prefix`.bin and `prefix`.idx, several are
    numbered. Methods raise OSError. hashes: xxh3_128 of what was written, by the name of the file.
    """

    def __init__(self, prefix: Path, shard_bytes: int | None = None):
        """shard_bytes: bytes of ids at which a shard is full; None: TOKEN_SHARD_BYTES."""
        self._prefix, self._most = prefix, TOKEN_SHARD_BYTES if shard_bytes is None else shard_bytes
        self.hashes: dict[str, str] = {}
        self._digest = xxhash.xxh3_128()  # of the shard's `.bin`
        self._shards = 0  # that are complete
        self._lengths = array("i")
        self._bytes = 0
        self._file = paths_of(prefix)[0].open("wb")

    def append(self, ids: Sequence[int] | np.ndarray) -> None:
        """Write a document. ids: its token ids, with its <eot>."""
        if self._bytes >= self._most:
            self._next_shard()
        content = np.asarray(ids, "<i4").tobytes()
        self._file.write(content)
        self._digest.update(content)
        self._lengths.append(len(content) // 4)
        self._bytes += len(content)

    def close(self) -> None:
        """Complete the last shard."""
        self._file.close()
        prefix = self._numbered(self._shards) if self._shards else self._prefix
        ids, index = paths_of(prefix)
        content = index_of(np.asarray(self._lengths, "<i4"))
        index.write_bytes(content)
        self.hashes |= {ids.name: self._digest.hexdigest(), index.name: xxhash.xxh3_128_hexdigest(content)}

    def _next_shard(self) -> None:
        self.close()
        if not self._shards:  # what looked like the only one is the first
            for old, new in zip(paths_of(self._prefix), paths_of(self._numbered(0)), strict=True):
                old.rename(new)
                self.hashes[new.name] = self.hashes.pop(old.name)
        self._shards += 1
        self._lengths, self._bytes, self._digest = array("i"), 0, xxhash.xxh3_128()
        self._file = paths_of(self._numbered(self._shards))[0].open("wb")

    def _numbered(self, number: int) -> Path:
        return self._prefix.with_name(_shard(self._prefix.name, number))


def write_tokens(
    prefix: Path, documents: Iterable[Sequence[int] | np.ndarray], shard_bytes: int | None = None
) -> dict[str, str]:
    """Write documents to token files, and return their hashes. documents: token ids of each document, with its <eot>. Arguments and
    hashes as of `ShardWriter`."""
    with closing(ShardWriter(prefix, shard_bytes)) as writer:
        for ids in documents:
            writer.append(ids)
    return writer.hashes


def index_of(lengths: np.ndarray) -> bytes:
    """Return the content of an `.idx`. lengths: number of tokens of each document, int32 little-endian."""
    ends = 4 * np.cumsum(lengths, dtype="<i8")
    bounds = np.arange(len(lengths) + 1, dtype="<i8")
    header = _HEADER.pack(_MAGIC, 1, _INT32_CODE, len(lengths), len(bounds))
    return header + lengths.tobytes() + (ends - 4 * lengths).tobytes() + bounds.tobytes()


def read_lengths(path: Path, written: str | None = None) -> np.ndarray:
    """Read the number of tokens of each document, int32, from an `.idx`.

    written: xxh3_128 of the file, in hexadecimal; None if it is unknown. Raises DataError with file and byte for an index that is
    not the one that follows from its lengths, and with the file for another hash: other lengths of the same sum make an index, too.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(in_words(error, path, "run prepare-data first")) from error
    documents = max(0, len(data) - len(index_of(np.empty(0, "<i4")))) // 20  # a length, an offset and a bound each
    lengths = np.frombuffer(data[_HEADER.size :][: 4 * documents], "<i4").copy()
    if (right := index_of(lengths)) != data:
        at = next(i for i, (one, other) in enumerate(zip_longest(data, right)) if one != other)
        raise DataError(f"{path}: is no index of {len(data)} bytes; first difference at byte {at}; {FIX}")
    if written is not None and (found := xxhash.xxh3_128_hexdigest(data)) != written:
        raise DataError(f"{path}: xxh3_128 is {found}, {written} was written; {FIX}")
    return lengths


def hashes_of_file(path: Path) -> tuple[str, bytes]:
    """Return the xxh3_128 hash of a file, in hexadecimal, and those of its chunks (CHUNK_BYTES), of HASH_BYTES each, end to end.

    The file is read once. Raises OSError.
    """
    whole, chunks = xxhash.xxh3_128(), bytearray()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            whole.update(chunk)
            chunks += xxhash.xxh3_128_digest(chunk)
    return whole.hexdigest(), bytes(chunks)
