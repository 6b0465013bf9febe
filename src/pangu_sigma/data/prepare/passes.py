"""Series of passes of a preparation, each a map of a function over units, with the small sums between them.

    hash → read: input → blocks of documents → [select] → sample: → text → [English pieces] → count: → counts of pieces
    → [rows of slots] → encode: → ids → overlap, choose: → held-out documents → write: → files

What stands in brackets is done by the caller's process, and kept in the stage like the results. Memory is bounded: a process has a
block of text, its ids, the windows of one domain's candidates, or a database of bounded memory at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pangu_sigma.data.prepare.blocks import Block, Work
from pangu_sigma.data.prepare.encoding import (
    SAMPLED,
    SampleItem,
    count_block,
    encode_block,
    final_tokenizer,
    full_tokenizer,
    sample_block,
    sample_steps,
    summed,
)
from pangu_sigma.data.prepare.held_out.holding_out import ChooseItem, choose, count_overlap, overlap_items
from pangu_sigma.data.prepare.kept import KeptVocabulary
from pangu_sigma.data.prepare.reading import read
from pangu_sigma.data.prepare.selection import Selection, select
from pangu_sigma.data.prepare.stages.stage import Executor, numbered
from pangu_sigma.data.prepare.writing import WriteItem, write_domain
from pangu_sigma.text.inputs import InputUnit
from pangu_sigma.text.sentencepieces import read_english, train_english
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import choose_rows

logger = logging.getLogger(__name__)


def key_of(settings: Any) -> str:
    """Return the hash of settings that JSON can hold."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


class Passes:
    """Passes of one preparation, in the order in which they are called. kept: vocabulary that it keeps. decisive: settings and text
    that decide its result."""

    def __init__(self, work: Work, executor: Executor, kept: KeptVocabulary | None, decisive: dict[str, Any]) -> None:
        self.work, self._executor, self._kept, self.decisive = work, executor, kept, decisive
        self._begun = ["hash"]  # by the caller, because what it hashes is decisive
        self._key = ""

    def begin(self, name: str, *settings: Any) -> None:
        """Begin a pass, whose results depend on the passes before it and on these settings."""
        self._key = key_of([self._key, name, settings])
        self.work.stage.begin(name, self._key, self._begun)
        self._begun.append(name)

    def _map(self, name: str, function: Callable[..., Iterator[pa.Table]], items: Sequence[Any]) -> Iterator[pa.Table]:
        return self.work.stage.map(self._executor, name, partial(function, self.work), items)

    def read(self, units: Sequence[InputUnit]) -> list[Block]:
        """Read the units of the input into blocks."""
        decisive = self.decisive
        domains = [[domain.name, domain.format, domain.language] for domain in self.work.domains]
        text = [decisive[key] for key in ("inputs", "text_key", "domain_of", "reader", "versions")]
        near = self.work.config.data.near_duplicates is not None and [version(n) for n in ("datasketch", "xxhash")]
        self.begin("read", self.work.size, domains, text, near)
        self._map("read", read, units)
        groups = (self.work.stage.groups(f"read/{numbered(unit)}") - 1 for unit in range(len(units)))
        return [Block(unit, group) for unit, count in enumerate(groups) for group in range(count)]

    def select(self, blocks: Sequence[Block]) -> Selection:
        """Select the documents to keep, and the candidates for the held-out set."""
        work, data = self.work, self.work.config.data
        fractions = [work.config.data_of(domain.index).held_out for domain in work.domains]
        self.begin("select", work.limit, data.near_duplicates, data.max_held_out_tokens, data.held_out, fractions)

        def content() -> bytes:
            with work.stage.database(data.memory_gib / 2, self._executor.workers) as database:
                database.register("documents", work.stage.results("read"))
                return select(work, blocks, database).model_dump_json().encode()

        return Selection.model_validate_json(work.stage.once("select/counts", content))

    def build_tokenizer(self, blocks: Sequence[Block], selection: Selection) -> Tokenizer:
        """Build the tokenizer from documents that are no held-out candidates: English pieces, and the rows of every slot."""
        config, decisive = self.work.config, self.decisive
        model = config.vocabulary.english_model or (self._kept and self._kept.english_model)
        self.begin("sample", *(decisive[key] for key in ("english_pieces", "english_model", "kept")))
        self.work.stage.once(
            "sample/english", lambda: read_english(Path(model)) if model else self._english(blocks, selection)
        )
        names = [self.work.domains.slot_names[domain.slot] for domain in self.work.domains]
        self.begin("count", config.model.slot_rows, names)
        self.work.stage.once("count/rows", lambda: self._rows(blocks).tobytes())
        return final_tokenizer(self.work)

    def _english(self, blocks: Sequence[Block], selection: Selection) -> bytes:
        """Learn the English pieces, and return their model."""
        pieces = self.work.config.vocabulary.english_pieces
        steps = sample_steps(selection.domains, pieces)
        items = [SampleItem(block, steps) for block in blocks]
        samples = pa.concat_tables([SAMPLED.empty_table(), *self._map("sample", sample_block, items)])
        text: list[str] = samples.sort_by("domain")["text"].to_pylist()
        mib = sum(map(len, text)) / (1 << 20)
        logger.info("building the vocabulary: learning %s English pieces from %.1f MiB of text", f"{pieces:,}", mib)
        return train_english(text, pieces)

    def _rows(self, blocks: Sequence[Block]) -> np.ndarray:
        """Choose the token id of each row of every slot, int32 [slots, R]."""
        domains, rows, tokenizer = self.work.domains, self.work.config.model.slot_rows, full_tokenizer(self.work)
        slots = range(len(domains.slot_names))
        kept_ids = [self._kept.ids(tokenizer.vocabulary, domains, slot) if self._kept else [] for slot in slots]
        if tokenizer.size <= rows:
            all_ids = [[*dict.fromkeys([*ids, *range(tokenizer.size)])] for ids in kept_ids]
            return np.pad(np.array(all_ids, np.int32), ((0, 0), (0, rows - tokenizer.size)), constant_values=-1)
        counts = summed(self._map("count", count_block, blocks), len(slots), tokenizer.size)
        chosen = [
            choose_rows(tokenizer.vocabulary, domains.in_slot(slot), counts[slot], rows, kept_ids[slot])
            for slot in slots
        ]
        return np.stack(chosen)

    def encode(self, blocks: Sequence[Block]) -> None:
        """Encode the kept documents."""
        self.begin("encode")
        self._map("encode", encode_block, blocks)

    def hold_out(self, blocks: int, selection: Selection, more_text: Sequence[str]) -> list[dict[str, Any]]:
        """Choose the documents to hold out of each domain, and return the row that `choose` yields for each.

        blocks: number of blocks. more_text: for each domain, advice on how to have more text of it, for problems.
        """
        self.begin("overlap")
        items = [item for domain in range(len(selection.domains)) for item in overlap_items(domain, blocks)]
        self._map("overlap", count_overlap, items)
        self.begin("choose", self.decisive, self.work.config.model.seq_length)
        parts = len(items) // len(selection.domains)  # of every domain
        choices = [
            ChooseItem(n, blocks, range(n * parts, (n + 1) * parts), counts.kept, more_text[n])
            for n, counts in enumerate(selection.domains)
        ]
        return [row for table in self._map("choose", choose, choices) for row in table.to_pylist()]

    def write(self, blocks: int, held_out: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Write the token files of all domains, and return the row that `write_domain` yields for each. held_out: for each domain
        the row of `choose`, with its held-out documents and the number of their tokens."""
        self.begin("write")
        items = [WriteItem(n, blocks, row["documents"], row["tokens"]) for n, row in enumerate(held_out)]
        return [row for table in self._map("write", write_domain, items) for row in table.to_pylist()]
