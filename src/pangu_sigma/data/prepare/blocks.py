"""Blocks of documents: what the passes of a preparation share.

A *block* is a stretch of the documents of one input unit, in order. Its files are the documents as they were read, an *index* with
a record of each, and after segmentation its runs. Documents have numbers in their block, from 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.data.prepare.stages.stage import Stage, read_frame
from pangu_sigma.domains import Domains, domains_of

FRAME_BYTES = 1 << 20
"""Bytes of text of a frame: what a worker has in memory as objects, unless one document is larger."""

PER_DOCUMENT = 256
"""Bytes of memory of a document beside its text, about."""

INDEX = np.dtype(
    [
        *((name, "<u8") for name in ("key_high", "key_low", "hold_high", "hold_low")),
        ("bytes", "<u4"),
        ("number", "<u4"),
        ("domain", "<u2"),
    ]
)
"""Record of a document. key, hold: first 128 bits of the hashes that decide whether it is kept and held out, in two parts. bytes:
of UTF-8. number: in its block. domain: index."""


@dataclass(frozen=True)
class Block:
    """Block of documents. name: of its files, with .documents, .index, .runs, .ids. count: number of documents. offsets: of the
    index's parts."""

    name: str
    count: int
    offsets: tuple[int, ...]

    def of_part(self, stage: Stage, number: int) -> np.ndarray:
        """Return the records of one part of the index, INDEX [documents]."""
        with stage.path(f"{self.name}.index").open("rb") as file:
            records: np.ndarray = read_frame(file, self.offsets[number])
            return records

    def index(self, stage: Stage) -> np.ndarray:
        """Return the records of all documents in order, INDEX [count]."""
        with stage.path(f"{self.name}.index").open("rb") as file:
            records = np.concatenate([read_frame(file, offset) for offset in self.offsets])
        return records[np.argsort(records["number"])]


@dataclass(frozen=True)
class Work:
    """What every unit of a preparation needs to know. size: bytes of text of a block. limit: maximum bytes kept
    of a domain; None for all. preview: True to write no token files."""

    config: Config
    stage: Stage
    size: int
    limit: int | None
    preview: bool

    @cached_property
    def domains(self) -> Domains:
        """Domains of the configuration."""
        return domains_of(self.config)


def starts(blocks: Sequence[Block]) -> np.ndarray:
    """Return the position of each block's first document among the documents of all, int64 [blocks + 1]."""
    return np.cumsum([0, *(block.count for block in blocks)], dtype=np.int64)


def index_parts(size: int) -> int:
    """Return the number of parts of an index, by the first bits of `key`, for blocks of so many bytes of text.

    The selection holds one part of all indexes in memory, at 42 bytes a document and as much again to sort it.
    """
    return max(1, min(size // (256 << 10), 64))


def block_size(total: int) -> int:
    """Return the bytes of text of a block for so many bytes of input: enough blocks for all cores, but no tiny ones.

    It is a function of the input alone, so that a preparation that goes on has the same blocks with any number of workers.
    """
    return max(1 << 20, min(total // 64, 16 << 20))


def in_frames(sizes: Iterator[tuple[object, int]]) -> Iterator[list[object]]:
    """Group values, each with its bytes, into lists of FRAME_BYTES or a little more."""
    some, size = list[object](), 0
    for value, more in sizes:
        some.append(value)
        size += more + PER_DOCUMENT
        if size >= FRAME_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some
