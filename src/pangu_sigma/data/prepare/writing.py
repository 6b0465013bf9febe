"""Pass `write`: token ids of all blocks → the token file of a domain and split, and its statistics.

Shape suffixes: V vocabulary, N documents.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pangu_sigma.data.indexed import write_tokens
from pangu_sigma.data.manifest import SplitCounts
from pangu_sigma.data.prepare.blocks import Work
from pangu_sigma.data.prepare.encoding import Encoded, final_tokenizer, ids_of
from pangu_sigma.data.prepare.stages.stage import UnitResults
from pangu_sigma.text.vocabulary import UNK


@dataclass(frozen=True)
class SplitItem:
    """Split of a domain. held_out_N: positions of the domain's held-out documents among those of all blocks, ascending."""

    domain: int
    split: str
    encoded: UnitResults
    held_out_N: np.ndarray


class SplitStatistics:
    """Statistics of a split. counts_V: number of each token id. hashes: those of its token files, as `write_tokens` gives them."""

    def __init__(self, vocabulary: int) -> None:
        self.counts_V = np.zeros(vocabulary, np.int64)
        self.hashes: dict[str, str] = {}
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


def write_split(work: Work, name: str, item: SplitItem) -> SplitStatistics:
    """Write the token file of a split into the folder `output` of the stage, unless the work is a preview."""
    written = SplitStatistics(final_tokenizer(work).size)
    documents = _documents(work, item, written)
    if work.preview:
        deque(documents, maxlen=0)
    else:
        prefix = work.stage.path(f"output/{work.domains[item.domain].name}.{item.split}")
        prefix.parent.mkdir(exist_ok=True)
        written.hashes = write_tokens(prefix, documents)
    return written


def _documents(work: Work, item: SplitItem, written: SplitStatistics) -> Iterator[np.ndarray]:
    """Yield the token ids of each document of the split in order, and count them."""
    encoded: Encoded
    for encoded in item.encoded:
        documents_N = encoded.documents[item.domain]
        held_out_N = np.isin(documents_N["at"], item.held_out_N)
        if item.split == "held_out":  # few documents of many blocks
            chosen_N = documents_N[held_out_N]
            ids = [ids_of(work.stage, encoded.name, document) for document in chosen_N]
        else:
            chosen_N = documents_N[~held_out_N]
            every = encoded.ids(work.stage, item.domain)
            ids = [some for some, held in zip(every, held_out_N, strict=True) if not held]
        if ids:
            written.add(chosen_N, ids)
        yield from ids
