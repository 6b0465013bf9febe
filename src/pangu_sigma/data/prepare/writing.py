"""Pass `write`: token ids of all blocks → the folder of a domain but its manifest, and statistics.

Shape suffixes: V vocabulary, S random samples.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pangu_sigma.data.indexed import write_tokens
from pangu_sigma.data.prepare.blocks import Work
from pangu_sigma.data.prepare.encoding import candidates_of, final_tokenizer, ids_of, others_of
from pangu_sigma.data.prepare.held_out.shift import draw_samples, held_out_shift
from pangu_sigma.data.prepare.stages.stage import numbered, rows_of, tables_of
from pangu_sigma.data.prepared import FREQUENCIES_NAME, ROWS_NAME, SPLITS
from pangu_sigma.data.token_files import write_hashes
from pangu_sigma.text.vocabulary import UNK

_SAMPLING_GIB = 0.25
"""Memory of a worker's database, which orders a domain's documents by hash."""


@dataclass(frozen=True)
class WriteItem:
    """Domain, the numbers of the blocks with documents of it, and the documents to hold out, with their tokens."""

    domain: int
    blocks: tuple[int, ...]
    held_out: list[int]
    tokens: int


def write_domain(work: Work, number: int, item: WriteItem) -> Iterator[pa.Table]:
    """Write the folder of a domain, but its manifest, into `write/output` of the stage.

    Yield a row. splits: as JSON, statistics for the manifest by split. files, hashes: as JSON the sizes of the files, and the hash
    of `hashes` (`write_hashes`). loss, shift, deviation: of the held-out text (`held_out_shift`).
    """
    tokenizer, domain = final_tokenizer(work), work.domains[item.domain]
    written, folder = _Written(work, item, tokenizer.size), work.stage.path(f"write/output/{domain.name}")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    folder.mkdir(parents=True)
    for split in SPLITS:
        write_tokens(folder / split, written.documents(split))
    train_V, held_out_V = (written.counts[split] for split in SPLITS)
    slot_R = tokenizer.slot_rows[domain.slot]
    np.save(folder / ROWS_NAME, slot_R[slot_R >= 0])
    np.save(folder / FREQUENCIES_NAME, train_V)
    files, hashes = write_hashes(folder)
    loss, shift, deviation = held_out_shift(train_V, held_out_V, written.samples_SV, slot_R)
    splits = {split: written.record(split) for split in SPLITS}
    values = {"splits": json.dumps(splits), "files": json.dumps(files), "hashes": hashes}
    yield pa.Table.from_pylist([values | {"loss": loss, "shift": shift, "deviation": deviation}])


class _Written:
    """Documents of a domain that are written. counts: number of each token id, by split, int64 [V]. samples_SV: number of each
    token id in each random sample."""

    def __init__(self, work: Work, item: WriteItem, vocabulary: int) -> None:
        self._work, self._item = work, item
        self.counts = {split: np.zeros(vocabulary, np.int64) for split in SPLITS}
        self._sums = {split: Counter[str]() for split in SPLITS}
        samples = self._samples()
        self._sample_of = {number: n for n, sample in enumerate(samples) for number in sample}
        self.samples_SV = np.zeros((len(samples), vocabulary), np.int64)

    def _samples(self) -> list[list[int]]:
        if not self._item.tokens:
            return []  # nothing is held out; there may be no text at all
        with self._work.stage.database(_SAMPLING_GIB) as database:
            database.register("encoded", self._work.stage.results("encode"))
            order = f"SELECT document, tokens FROM encoded WHERE domain = {self._item.domain} ORDER BY hold, document"
            rows = (row for table in tables_of(database, order) for row in rows_of(table))
            return draw_samples(rows, self._item.tokens)

    def documents(self, split: str) -> Iterator[np.ndarray]:
        """Yield the token ids of each document of a split in order, and count them."""
        groups = [candidates_of(self._item.domain), others_of(self._item.domain)][: 1 if split == "held_out" else 2]
        held_out = pa.array(self._item.held_out, pa.int64())
        for number in self._item.blocks:
            table = pa.concat_tables([self._work.stage.read(f"encode/{numbered(number)}", group) for group in groups])
            is_held_out = pc.is_in(table["document"], held_out)
            chosen = table.filter(is_held_out if split == "held_out" else pc.invert(is_held_out)).sort_by("document")
            if chosen.num_rows:
                ids = ids_of(chosen)
                self._count(split, chosen, ids)
                yield from ids

    def _count(self, split: str, table: pa.Table, ids: list[np.ndarray]) -> None:
        self._sums[split]["documents"] += table.num_rows
        for name in ("bytes", "folded"):
            self._sums[split][name] += pc.sum(table[name]).as_py()
        vocabulary = len(self.counts[split])
        self.counts[split] += np.bincount(np.concatenate(ids), minlength=vocabulary)
        for number, ids_T in zip(table["document"].to_pylist(), ids, strict=True):
            if (sample := self._sample_of.get(number)) is not None:
                np.add.at(self.samples_SV[sample], ids_T, 1)

    def record(self, split: str) -> dict[str, int]:
        """Return the statistics of a split for the manifest."""
        counts_V, sums = self.counts[split], self._sums[split]
        counted = {name: sums[name] for name in ("documents", "bytes", "folded")}
        return counted | {"tokens": int(counts_V.sum()), "unknown": int(counts_V[UNK])}
