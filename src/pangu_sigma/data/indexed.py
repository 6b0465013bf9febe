"""Token files in Megatron's `.bin`/`.idx` format, which MindFormers and Megatron can read too: their names, their content, and the
writer. The reader is token_files.py.

`.bin`: the ids of all documents, int32 little-endian, end to end. `.idx`: magic MMIDIDX, version 1, dtype code 4, number of
sequences N and of document bounds, then int32 [N] lengths, int64 [N] byte offsets, int64 [N + 1] document bounds. MindFormers
writes the same bytes, but importing it takes seconds.

Text of more than TOKEN_SHARD_BYTES is cut into *shards*, token files of their own, between documents: `train.bin` is then
`train.00000.bin`, `train.00001.bin`, …
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

TOKEN_SHARD_BYTES = 4 << 30
"""Bytes of a `.bin` at which the next shard begins. Our choice: 1.2 TB are 300 shards."""

_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_INT32_CODE = 4


def paths_of(prefix: Path) -> tuple[Path, Path]:
    """Return the paths of a token file: (`prefix`.bin, `prefix`.idx)."""
    return prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")


def token_shards(name: str, files: Collection[str]) -> list[str]:
    """Return the names of the token files of a split, in order; [] if there are none.

    name: name of the only one, such as `train`. files: names of all files of the folder.
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
    numbered. Methods raise OSError.
    """

    def __init__(self, prefix: Path, shard_bytes: int | None = None):
        """shard_bytes: bytes of ids at which a shard is full; None: TOKEN_SHARD_BYTES."""
        self._prefix, self._most = prefix, TOKEN_SHARD_BYTES if shard_bytes is None else shard_bytes
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
        self._lengths.append(len(content) // 4)
        self._bytes += len(content)

    def close(self) -> None:
        """Complete the last shard."""
        self._file.close()
        prefix = self._numbered(self._shards) if self._shards else self._prefix
        paths_of(prefix)[1].write_bytes(index_of(np.asarray(self._lengths, "<i4")))

    def _next_shard(self) -> None:
        self.close()
        if not self._shards:  # what looked like the only one is the first
            for old, new in zip(paths_of(self._prefix), paths_of(self._numbered(0)), strict=True):
                old.rename(new)
        self._shards += 1
        self._lengths, self._bytes = array("i"), 0
        self._file = paths_of(self._numbered(self._shards))[0].open("wb")

    def _numbered(self, number: int) -> Path:
        return self._prefix.with_name(_shard(self._prefix.name, number))


def write_tokens(prefix: Path, documents: Iterable[Sequence[int] | np.ndarray], shard_bytes: int | None = None) -> None:
    """Write documents to token files. documents: token ids of each, with its <eot>. Other arguments as of `ShardWriter`."""
    with closing(ShardWriter(prefix, shard_bytes)) as writer:
        for ids in documents:
            writer.append(ids)


def index_of(lengths: np.ndarray) -> bytes:
    """Return the content of an `.idx`. lengths: number of tokens of each document, int32 little-endian."""
    ends = 4 * np.cumsum(lengths, dtype="<i8")
    bounds = np.arange(len(lengths) + 1, dtype="<i8")
    header = _HEADER.pack(_MAGIC, 1, _INT32_CODE, len(lengths), len(bounds))
    return header + lengths.tobytes() + (ends - 4 * lengths).tobytes() + bounds.tobytes()


def lengths_of(index: bytes) -> np.ndarray:
    """Return the number of tokens of each document, int32, from the content of an `.idx` that `index_of` returned."""
    documents = _HEADER.unpack_from(index)[3]
    return np.frombuffer(index, "<i4", documents, _HEADER.size)
