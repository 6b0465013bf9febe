"""Series of passes of a preparation, each a map of a function over units, with the small sums between them.

    hash → read: input → blocks of documents → [select] → segment: → runs of words → sample: → text → [English pieces]
    → count: → counts of pieces → [rows of slots] → encode: → ids → windows, overlap, choose: → held-out documents → write: → files

What stands in brackets is done by the caller's process, from results of the pass before, and kept in the stage like them. Memory is
bounded: a process has a frame of text as objects, the ids of a block, the windows of one domain's candidates, or a part of the
indexes at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.data.prepare.blocks import Block, Work
from pangu_sigma.data.prepare.encoding import count_block, encode_block, final_tokenizer, summed, whole_tokenizer
from pangu_sigma.data.prepare.held_out.holding_out import (
    DomainItem,
    HeldOutDocuments,
    choose,
    count_overlap,
    find_windows,
    overlap_items,
)
from pangu_sigma.data.prepare.kept import KeptVocabulary
from pangu_sigma.data.prepare.reading import Read, read
from pangu_sigma.data.prepare.segmenting import BlockItem, sample_block, sample_items, segment_block
from pangu_sigma.data.prepare.selection import Selection, select
from pangu_sigma.data.prepare.stages.stage import Executor, UnitResults
from pangu_sigma.data.prepare.writing import WriteItem, WrittenDomain, write_domain
from pangu_sigma.text.inputs import InputUnit
from pangu_sigma.text.sentencepieces import read_english, train_english
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import choose_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passes:
    """Passes of one preparation. kept: vocabulary that it keeps."""

    work: Work
    executor: Executor
    kept: KeptVocabulary | None

    def _map(self, name: str, function: Callable[[Work, str, Any], Any], items: Sequence[Any]) -> UnitResults:
        return self.work.stage.map(self.executor, name, partial(function, self.work), items)

    def read(self, units: Sequence[InputUnit]) -> list[Read]:
        """Read the units of the input."""
        return list(self._map("read", read, units))

    def select(self, blocks: Sequence[Block]) -> Selection:
        """Select the documents to keep, and the candidates for the held-out set."""
        return self.work.stage.once("selection", lambda: select(self.work, blocks))

    def segment(self, blocks: Sequence[Block]) -> UnitResults:
        """Segment the kept documents into runs of words, and return the counts of English runs of each block."""
        english = self._map("segment", segment_block, _items(blocks))
        self.work.stage.discard("read", ".documents")
        return english

    def build_tokenizer(self, blocks: Sequence[Block], english: UnitResults) -> Tokenizer:
        """Build the tokenizer from documents that are no held-out candidates: English pieces, and the rows of every slot."""
        stage, vocabulary = self.work.stage, self.work.config.vocabulary
        model = vocabulary.english_model or (self.kept and self.kept.english_model)
        stage.once("english", lambda: read_english(Path(model)) if model else self._english(blocks, english))
        stage.once("rows", lambda: self._rows(blocks))
        return final_tokenizer(self.work)

    def _english(self, blocks: Sequence[Block], english: UnitResults) -> bytes:
        """Learn the English pieces, and return their model."""
        pieces = self.work.config.vocabulary.english_pieces
        samples = list(self._map("sample", sample_block, sample_items(blocks, english, pieces)))
        text = [run for domain in self.work.domains for each in samples for run in each[domain.index]]
        mib = sum(map(len, text)) / (1 << 20)
        logger.info("building the vocabulary: learning %s English pieces from %.1f MiB of text", f"{pieces:,}", mib)
        return train_english(text, pieces)

    def _rows(self, blocks: Sequence[Block]) -> np.ndarray:
        """Choose the token id of each row of every slot, int32 [slots, R]."""
        domains, rows, whole = self.work.domains, self.work.config.model.slot_rows, whole_tokenizer(self.work)
        slots = range(len(domains.slot_names))
        kept = [self.kept.ids(whole.vocabulary, domains, slot) if self.kept else [] for slot in slots]
        if whole.size <= rows:
            every = [[*dict.fromkeys([*ids, *range(whole.size)])] for ids in kept]
            return np.pad(np.array(every, np.int32), ((0, 0), (0, rows - whole.size)), constant_values=-1)
        counts = summed(self._map("count", count_block, _items(blocks)), len(slots), whole.size)
        chosen = [
            choose_rows(whole.vocabulary, domains.in_slot(slot), counts[slot], rows, kept[slot]) for slot in slots
        ]
        return np.stack(chosen)

    def encode(self, blocks: Sequence[Block]) -> UnitResults:
        """Encode the kept documents."""
        encoded = self._map("encode", encode_block, _items(blocks))
        self.work.stage.discard("read", ".runs")
        return encoded

    def hold_out(self, encoded: UnitResults, more_text: Sequence[str]) -> list[HeldOutDocuments]:
        """Choose the documents to hold out of each domain. more_text: advice on how to have more text of each, for problems."""
        domains = range(len(self.work.domains))
        self._map("windows", find_windows, [DomainItem(domain, encoded) for domain in domains])
        items = overlap_items(encoded, len(domains))
        ends = np.cumsum([0, *map(len, items)]).tolist()
        overlap = self._map("overlap", count_overlap, [item for some in items for item in some])
        wanted = [DomainItem(d, encoded, overlap, ends[d], ends[d + 1], more_text[d]) for d in domains]
        return list(self._map("choose", choose, wanted))

    def write(self, encoded: UnitResults, held_out: Sequence[HeldOutDocuments]) -> list[WrittenDomain]:
        """Write the token files of all domains."""
        items = [WriteItem(domain, encoded, each) for domain, each in enumerate(held_out)]
        return list(self._map("write", write_domain, items))


def _items(blocks: Sequence[Block]) -> list[BlockItem]:
    return [BlockItem(number, block) for number, block in enumerate(blocks)]
