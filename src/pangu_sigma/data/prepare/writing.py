"""Pass `write`: token ids of all blocks → the folder of a domain but its manifest, and statistics.

Shape suffixes: V vocabulary, N documents.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pangu_sigma.data.indexed import write_tokens
from pangu_sigma.data.manifest import OverlapRecord, SplitCounts
from pangu_sigma.data.prepare.blocks import Work
from pangu_sigma.data.prepare.encoding import Encoded, final_tokenizer, ids_of
from pangu_sigma.data.prepare.held_out.holding_out import HeldOutDocuments
from pangu_sigma.data.prepare.held_out.shift import find_shift
from pangu_sigma.data.prepare.stages.stage import UnitResults
from pangu_sigma.data.prepared import FREQUENCIES_NAME, ROWS_NAME, SPLITS
from pangu_sigma.data.token_files import write_hashes
from pangu_sigma.text.vocabulary import UNK


@dataclass(frozen=True)
class WriteItem:
    """Domain by its index. encoded: results of the pass `encode`. held_out: the domain's held-out documents."""

    domain: int
    encoded: UnitResults
    held_out: HeldOutDocuments


class SplitStatistics:
    """Statistics of a split. counts_V: number of each token id."""

    def __init__(self, vocabulary: int) -> None:
        self.counts_V = np.zeros(vocabulary, np.int64)
        self._documents = self._bytes = self._folded = 0

    def add(self, documents_N: np.ndarray, ids: list[np.ndarray]) -> None:
        """Add documents, DOCUMENT, with their token ids."""
        self._documents += len(documents_N)
        self._bytes += int(documents_N["bytes"].sum(dtype=np.int64))
        self._folded += int(documents_N["folded"].sum(dtype=np.int64))
        self.counts_V += np.bincount(np.concatenate(ids), minlength=len(self.counts_V))

    @property
    def record(self) -> SplitCounts:
        """Statistics for the manifest."""
        return SplitCounts(
            documents=self._documents,
            tokens=int(self.counts_V.sum()),
            bytes=self._bytes,
            unknown=int(self.counts_V[UNK]),
            folded=self._folded,
        )


@dataclass(frozen=True)
class WrittenDomain:
    """Statistics of a domain's splits; unigram loss of the held-out text, its shift, and the shift's deviation (`held_out_shift`);
    its overlap; and sizes of its files and the hash of `hashes` (`write_hashes`)."""

    splits: dict[str, SplitCounts]
    shift: tuple[float, float, float]
    overlap: OverlapRecord
    files: dict[str, int]
    hashes: str


def write_domain(work: Work, name: str, item: WriteItem) -> WrittenDomain:
    """Write the folder of a domain, but its manifest, into `output` of the stage; in a preview count alone."""
    domain, tokenizer = work.domains[item.domain], final_tokenizer(work)
    folder = None if work.preview else work.stage.path(f"output/{domain.name}")
    if folder:
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        folder.mkdir(parents=True)
    splits = {split: _write_split(work, item, split, folder, tokenizer.size) for split in SPLITS}
    files, hashes = dict[str, int](), ""
    if folder:
        rows_R = tokenizer.slot_rows[domain.slot]
        np.save(folder / ROWS_NAME, rows_R[rows_R >= 0])
        np.save(folder / FREQUENCIES_NAME, splits["train"].counts_V)
        files, hashes = write_hashes(folder)
    shift = find_shift(work, item.encoded, item.domain, *(splits[split].counts_V for split in SPLITS))
    records = {split: statistics.record for split, statistics in splits.items()}
    return WrittenDomain(records, shift, item.held_out.choice.overlap, files, hashes)


def _write_split(work: Work, item: WriteItem, split: str, folder: Path | None, vocabulary: int) -> SplitStatistics:
    written = SplitStatistics(vocabulary)
    documents = _documents(work, item, split, written)
    if folder is None:
        deque(documents, maxlen=0)
    else:
        write_tokens(folder / split, documents)
    return written


def _documents(work: Work, item: WriteItem, split: str, written: SplitStatistics) -> Iterator[np.ndarray]:
    """Yield the token ids of each document of a split in order, and count them."""
    encoded: Encoded
    for encoded in item.encoded:
        documents_N = encoded.documents[item.domain]
        held_out_N = np.isin(documents_N["at"], item.held_out.at_N)
        if split == "held_out":  # few documents of many blocks
            chosen_N = documents_N[held_out_N]
            ids = [ids_of(work.stage, encoded.name, document) for document in chosen_N]
        else:
            chosen_N = documents_N[~held_out_N]
            every = encoded.ids(work.stage, item.domain)
            ids = [some for some, held in zip(every, held_out_N, strict=True) if not held]
        if ids:
            written.add(chosen_N, ids)
        yield from ids
