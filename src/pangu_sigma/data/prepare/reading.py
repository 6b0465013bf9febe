"""Pass `read`: units of the input → blocks of documents with their index, and the lines that cannot be used."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pangu_sigma.data.prepare.blocks import FRAME_BYTES, INDEX, PER_DOCUMENT, Block, Work, index_parts
from pangu_sigma.data.prepare.cleaning.near_duplicates import PERMUTATIONS, signature
from pangu_sigma.data.prepare.quarantine import Quarantine
from pangu_sigma.data.prepare.stages.stage import Stage, read_frames, write_frame
from pangu_sigma.text.documents import Document, Rejected
from pangu_sigma.text.inputs import InputUnit, read_unit
from pangu_sigma.text.layout import Layout

_REJECTED_OF_FRAME = 1_000


@dataclass(frozen=True)
class Read:
    """Result of a unit. name: of its files. lines: number of its lines. domains: indices of the domains of its documents. reasons:
    number of lines that cannot be used, by reason."""

    name: str
    blocks: list[Block] = field(default_factory=list)
    domains: set[int] = field(default_factory=set)
    reasons: Counter[str] = field(default_factory=Counter)
    lines: int = 0


def read(work: Work, name: str, unit: InputUnit) -> Read:
    """Read a unit, and write its blocks, and the lines that cannot be used to the file .rejected if there are any."""
    domains, result, lines = work.domains, Read(name), 0

    def items_of_unit() -> Iterator[Document | Rejected]:
        nonlocal lines
        lines = yield from read_unit(unit, Layout.of(work.config), domains)

    items = items_of_unit()
    rejected, signed = list[Rejected](), work.config.data.near_duplicates is not None
    with work.stage.writing(f"{name}.rejected") as unusable:
        for first in items:
            block = BlockWriter(work.stage, f"{name}.{len(result.blocks):04}", index_parts(work.size), signed)
            with work.stage.writing(f"{block.name}.documents") as documents:
                item: Document | Rejected | None = first
                while item is not None:
                    if isinstance(item, Rejected):
                        result.reasons[item.reason] += 1
                        rejected.append(item)
                        if len(rejected) == _REJECTED_OF_FRAME:
                            write_frame(unusable, rejected)
                            rejected.clear()
                    else:
                        domain = domains.named(item.domain).index
                        result.domains.add(domain)
                        block.add(documents, domain, item)
                    item = next(items, None) if block.size < work.size else None
                block.flush(documents)
            result.blocks.append(block.close())
        write_frame(unusable, rejected)
    if not result.reasons:
        work.stage.path(f"{name}.rejected").unlink()
    return replace(result, lines=lines)


class BlockWriter:
    """Writer of one block. name: of its files. size: bytes of its documents so far, as they are in memory."""

    def __init__(self, stage: Stage, name: str, parts: int, signed: bool = False) -> None:
        """parts: of the index. signed: True to write the documents' signatures, for the search for near-duplicates."""
        self.name, self._stage, self._parts = name, stage, parts
        self.size = self._flushed = 0
        self._frame = list[tuple[int, object]]()
        self._facts = list[tuple[int, int]]()
        self._hashes = list[bytes]()
        self._signatures: list[np.ndarray] | None = [] if signed else None

    def add(self, file: object, domain: int, document: Document) -> None:
        """Add a document to the block. file: for the documents."""
        size = document.bytes
        self._facts.append((size, domain))
        self._hashes += [content_hash("keep", document)[:16], content_hash("hold out", document)[:16]]
        if self._signatures is not None:
            self._signatures.append(signature(document))
        self._frame.append((domain, document.text))
        self.size += size + PER_DOCUMENT
        if self.size - self._flushed >= FRAME_BYTES:
            self.flush(file)

    def flush(self, file: object) -> None:
        """Write the documents since the last frame."""
        write_frame(file, self._frame)  # type: ignore[arg-type]
        self._flushed = self.size
        self._frame.clear()

    def close(self) -> Block:
        """Write the index, and the signatures; return the block."""
        if self._signatures is not None:
            with self._stage.writing(f"{self.name}.signatures") as file:
                np.save(file, np.array(self._signatures, np.uint32).reshape(-1, PERMUTATIONS))
        records = np.zeros(len(self._facts), INDEX)
        parts = np.frombuffer(b"".join(self._hashes), ">u8").reshape(-1, 4)
        for column, key in enumerate(("key_high", "key_low", "hold_high", "hold_low")):
            records[key] = parts[:, column]
        facts = np.array(self._facts, np.int64).reshape(-1, 2)
        records["bytes"], records["domain"] = facts[:, 0], facts[:, 1]
        records["number"] = np.arange(len(records))
        records = records[np.argsort(records["key_high"], kind="stable")]
        bounds = np.array([(number << 64) // self._parts for number in range(self._parts)], np.uint64)
        begins = np.searchsorted(records["key_high"], bounds).tolist()
        with self._stage.writing(f"{self.name}.index") as file:
            ends = [*begins[1:], len(records)]
            offsets = [write_frame(file, records[a:b]) for a, b in zip(begins, ends, strict=True)]
        return Block(self.name, len(records), tuple(offsets))


def content_hash(purpose: str, document: Document) -> bytes:
    """Return the sha256 of a purpose and of a document's content: its text, and the language of each segment."""
    digest = hashlib.sha256(purpose.encode())
    for language, text in document.segments:
        digest.update(f"\0{language}\0".encode())
        digest.update(text.encode())
    return digest.digest()


def quarantine_lines(stage: Stage, results: Sequence[Read], units: Sequence[InputUnit], into: Quarantine) -> None:
    """Add the unusable lines of all units to the quarantine, in order, with their numbers in the file."""
    before = 0
    for result, unit in zip(results, units, strict=True):
        if unit.begin == 0:
            before = 0
        if result.reasons:
            for some in read_frames(stage.path(f"{result.name}.rejected")):
                for line in some:
                    into.add(line if line.line is None else replace(line, line=line.line + before))
        before += result.lines
