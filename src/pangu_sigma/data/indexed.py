"""Token files in Megatron's `.bin`/`.idx` format, which MindFormers and Megatron read as they are.

`.bin`: the ids of all documents, int32 little-endian, end to end. `.idx`: magic MMIDIDX, version 1, dtype code 4,
number of sequences N and of document bounds, then int32 [N] lengths, int64 [N] byte offsets, int64 [N + 1] document
bounds. Writing goes through MindFormers. Reading checks every number of the index against the others and the sizes of
both files, which MindFormers does not, and then maps the `.bin`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.errors import DataError
from pangu_sigma.mindformers_import import quiet_mindformers

_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_INT32_CODE = 4
_CHECK_BLOCK = 1 << 22
"""Ids that are checked against the vocabulary at a time, to bound memory."""

_FIX = "the file was cut short or altered; run prepare-data again"


def paths_of(prefix: Path) -> tuple[Path, Path]:
    """The two files of a prefix: (`prefix`.bin, `prefix`.idx)."""
    return prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")


def write_tokens(prefix: Path, documents: Iterable[list[int]]) -> None:
    """Write each document (ids, its <eot> included) as one sequence of one document."""
    data, index = paths_of(prefix)
    builder = _mindformers_builder()(str(data), dtype=np.int32)
    for ids in documents:
        builder.add_document(np.asarray(ids, dtype=np.int32), [len(ids)])
    builder.finalize(str(index))


def _mindformers_builder() -> Any:
    with quiet_mindformers():
        from mindformers.dataset.blended_datasets.indexed_dataset import IndexedDatasetBuilder

    return IndexedDatasetBuilder


class TokenFile:
    """The tokens of one domain and split, read as one long row.

    tokens: number of tokens. documents: number of documents. lengths: number of tokens of each document, int32.
    Raises DataError with file and byte offset when the index does not fit the files, or, given `vocabulary` (V),
    when an id is not in 0 … V - 1.
    """

    def __init__(self, prefix: Path, vocabulary: int | None = None) -> None:
        self.path, self._index_path = paths_of(prefix)
        self.lengths = self._read_index()
        self.documents = len(self.lengths)
        self.tokens = int(self.lengths.sum(dtype=np.int64))
        size = self._size(self.path)
        if size != 4 * self.tokens:
            raise DataError(
                f"{self.path}: has {size} bytes, {self.tokens} tokens need {4 * self.tokens}; "
                f"first difference at byte {min(size, 4 * self.tokens)}; {_FIX}"
            )
        self._ids = np.memmap(self.path, dtype="<i4", mode="r") if size else np.empty(0, dtype="<i4")
        if vocabulary is not None:
            self._check_ids(vocabulary)

    def read(self, start: int, length: int) -> np.ndarray:
        """Copy of tokens start … start + length - 1, [length] int32."""
        if start < 0 or length < 0 or start + length > self.tokens:
            raise IndexError(f"{self.path}: tokens {start} … {start + length} asked for, there are 0 … {self.tokens}")
        return np.array(self._ids[start : start + length], dtype=np.int32)

    def _read_index(self) -> np.ndarray:
        path = self._index_path
        size = self._size(path)
        data = path.read_bytes()
        if size < _HEADER.size:
            raise DataError(f"{path}: ends at byte {size}, inside the header of {_HEADER.size}; {_FIX}")
        magic, version, dtype, sequences, bounds = _HEADER.unpack_from(data)
        for offset, name, value, expected in (
            (0, "magic", magic, _MAGIC),
            (9, "version", version, 1),
            (17, "dtype code", dtype, _INT32_CODE),
            (26, "number of document bounds", bounds, sequences + 1),
        ):
            if value != expected:
                raise DataError(f"{path}: {name} at byte {offset} is {value!r}, expected {expected!r}; {_FIX}")
        expected_size = _HEADER.size + 12 * sequences + 8 * bounds
        if size != expected_size:
            raise DataError(
                f"{path}: has {size} bytes, {sequences} documents need {expected_size}; "
                f"first difference at byte {min(size, expected_size)}; {_FIX}"
            )
        return _checked_lengths(path, data, sequences)

    def _check_ids(self, vocabulary: int) -> None:
        for start in range(0, self.tokens, _CHECK_BLOCK):
            block = self._ids[start : start + _CHECK_BLOCK]
            wrong = np.flatnonzero((block < 0) | (block >= vocabulary))
            if len(wrong):
                at = start + int(wrong[0])
                raise DataError(
                    f"{self.path}: token {at} (byte {4 * at}) is {self._ids[at]}, not in 0 … {vocabulary - 1}; {_FIX}"
                )

    @staticmethod
    def _size(path: Path) -> int:
        try:
            return path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; run prepare-data first") from error


def _checked_lengths(path: Path, data: bytes, sequences: int) -> np.ndarray:
    """Lengths of the documents, [sequences] int32. The offsets and document bounds must be what follows from them."""
    lengths = np.frombuffer(data, "<i4", sequences, _HEADER.size)
    at_offsets = _HEADER.size + 4 * sequences
    offsets = np.frombuffer(data, "<i8", sequences, at_offsets)
    bounds = np.frombuffer(data, "<i8", sequences + 1, at_offsets + 8 * sequences)
    ends = 4 * np.cumsum(lengths, dtype=np.int64)
    for name, start, width, wrong in (
        ("length", _HEADER.size, 4, lengths < 0),
        ("offset", at_offsets, 8, offsets != ends - 4 * lengths.astype(np.int64)),
        ("document bound", at_offsets + 8 * sequences, 8, bounds != np.arange(sequences + 1)),
    ):
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            raise DataError(f"{path}: {name} {first} at byte {start + width * first} is wrong; {_FIX}")
    return lengths.copy()
