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


def write_tokens(prefix: Path, documents: Iterable[Sequence[int] | np.ndarray], shard_bytes: int | None = None) -> None:
    """Write documents to the token files of a domain and split. Raises OSError.

    A shard ends with the document that reaches `shard_bytes`. The only shard is `prefix`.bin and `prefix`.idx, several are
    numbered. The lengths of one shard's documents are in memory. documents: token ids of each, with its <eot>. shard_bytes: None:
    TOKEN_SHARD_BYTES.
    """
    limit, waiting, number = TOKEN_SHARD_BYTES if shard_bytes is None else shard_bytes, iter(documents), 0
    following = next(waiting, None)
    while following is not None or not number:
        shard, lengths = prefix.with_name(_shard(prefix.name, number)), array("i")
        with paths_of(shard)[0].open("wb") as file:
            while following is not None and (not lengths or file.tell() < limit):
                lengths.append(len(following))
                file.write(np.asarray(following, "<i4").tobytes())
                following = next(waiting, None)
        paths_of(shard)[1].write_bytes(index_of(np.asarray(lengths, "<i4")))
        number += 1
    if number == 1:
        for numbered, only in zip(paths_of(shard), paths_of(prefix), strict=True):
            numbered.rename(only)


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
