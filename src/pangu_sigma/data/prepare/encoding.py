"""Passes `count`: runs → counts of all pieces, for the rows of the slots; and `encode`: runs → token ids of the tokenizer."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import xxhash

from pangu_sigma.data.prepare.blocks import Work
from pangu_sigma.data.prepare.segmenting import BlockItem, kept_documents
from pangu_sigma.data.prepare.stages.stage import Stage, StageError
from pangu_sigma.text.sentencepieces import alpha_model
from pangu_sigma.text.tokenizer import Tokenizer

DOCUMENT = np.dtype(
    [
        ("at", "<i8"),
        ("begin", "<i8"),
        ("hold_high", "<u8"),
        ("hold_low", "<u8"),
        *((n, "<u4") for n in ("tokens", "bytes", "folded")),
    ]
)
"""Encoded document. at: position among the documents of all blocks. begin: first token in its block's ids. hold: as in INDEX."""


@dataclass(frozen=True)
class Encoded:
    """Encoded documents of a block: token ids in its file .ids, int32, domain by domain. name: of the block's files.

    documents: for each domain, DOCUMENT [documents]. hashes: for each domain, xxh3_128 of its ids.
    """

    name: str
    documents: list[np.ndarray]
    hashes: list[str]

    def ids(self, stage: Stage, domain: int) -> list[np.ndarray]:
        """Return the token ids of each document of a domain. Raises StageError if the file is not what was written."""
        documents = self.documents[domain]
        if not len(documents):
            return []
        path, first = stage.path(f"{self.name}.ids"), int(documents[0]["begin"])
        ids = np.fromfile(path, "<i4", int(documents["tokens"].sum(dtype=np.int64)), offset=4 * first)
        if xxhash.xxh3_128_hexdigest(ids.data) != self.hashes[domain]:
            raise StageError(f"{path}: damaged; remove {stage.folder} and call again")
        return np.split(ids, (documents["begin"][1:] - first).tolist())


def ids_of(stage: Stage, name: str, document: np.void) -> np.ndarray:
    """Return the token ids of one document, int32. name: of its block's files. document: DOCUMENT."""
    return np.fromfile(stage.path(f"{name}.ids"), "<i4", int(document["tokens"]), offset=4 * int(document["begin"]))


@functools.lru_cache(maxsize=1)
def _tokenizer(english: bytes, slots: int, rows: bytes) -> Tokenizer:
    """Make a tokenizer. rows: int32 [slots, R] as bytes; none: every slot has a row for every id."""
    if not rows:
        return Tokenizer.whole(alpha_model(), english, slots)
    return Tokenizer(alpha_model(), english, np.frombuffer(rows, np.int32).reshape(slots, -1))


def whole_tokenizer(work: Work) -> Tokenizer:
    """Return the tokenizer with a row for every id, of the English pieces in the stage."""
    return _tokenizer(work.stage.load("english"), len(work.domains.slot_names), b"")


def final_tokenizer(work: Work) -> Tokenizer:
    """Return the tokenizer with the slot rows in the stage."""
    return _tokenizer(work.stage.load("english"), len(work.domains.slot_names), work.stage.load("rows").tobytes())


def count_block(work: Work, name: str, item: BlockItem) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Count the pieces of a block's documents that are certain to be trained on: for each slot, its index, ids and their counts."""
    tokenizer, found = whole_tokenizer(work), defaultdict[int, list[np.ndarray]](list)
    for _, domain, certain, segments in kept_documents(work.stage, item.block):
        if certain:
            found[work.domains[domain].slot].append(tokenizer.sample_runs(segments, work.domains[domain]))
    counts = {slot: np.bincount(np.concatenate(ids)) for slot, ids in found.items()}
    return [(slot, ids := np.flatnonzero(counts_V), counts_V[ids]) for slot, counts_V in counts.items()]


def summed(counts: Iterable[list[tuple[int, np.ndarray, np.ndarray]]], slots: int, size: int) -> np.ndarray:
    """Return the sum of the results of `count_block`, int64 [slots, V]."""
    total = np.zeros((slots, size), np.int64)
    for each in counts:
        for slot, ids, some in each:
            total[slot, ids] += some
    return total


def encode_block(work: Work, name: str, item: BlockItem) -> Encoded:
    """Encode the kept documents of a block, and write their token ids."""
    tokenizer, index = final_tokenizer(work), item.block.index(work.stage)
    start = int(work.stage.load("selection").starts[item.number])
    found = [list[tuple[int, np.ndarray, int]]() for _ in work.domains]
    for number, domain, _, segments in kept_documents(work.stage, item.block):
        ids = tokenizer.sample_runs(segments, work.domains[domain])
        found[domain].append((number, ids, tokenizer.changed_by_normalisation(segments)))
    begin, documents, hashes = 0, [], []
    with work.stage.writing(f"{item.block.name}.ids") as file:
        for some in found:
            records, digest = np.zeros(len(some), DOCUMENT), xxhash.xxh3_128()
            for record, (number, ids, folded) in zip(records, some, strict=True):
                content, facts = ids.tobytes(), index[number]
                file.write(content)
                digest.update(content)
                record["at"], record["begin"] = start + number, begin
                record["tokens"], record["folded"] = len(ids), folded
                for key in ("hold_high", "hold_low", "bytes"):
                    record[key] = facts[key]
                begin += len(ids)
            documents.append(records)
            hashes.append(digest.hexdigest())
    return Encoded(item.block.name, documents, hashes)
