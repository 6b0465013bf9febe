"""Pass `write`: token ids of all blocks → the folder of a domain but its manifest, and statistics.

Shape suffixes: V vocabulary, S random samples, R rows of a slot, T tokens of a document.
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
from pangu_sigma.data.prepare.stages.stage import numbered
from pangu_sigma.data.prepared import FREQUENCIES_NAME, ROWS_NAME, SPLITS, unigram_nats
from pangu_sigma.data.token_files import write_hashes
from pangu_sigma.text.vocabulary import UNK

_SAMPLES = 20
"""Number of random samples of a domain, with which its held-out text is compared."""


@dataclass(frozen=True)
class WriteItem:
    """Domain, the number of blocks, and the documents to hold out, with the number of their tokens."""

    domain: int
    blocks: int
    held_out: list[int]
    tokens: int


def write_domain(work: Work, number: int, item: WriteItem) -> Iterator[pa.Table]:
    """Write the folder of a domain, but its manifest, into `write/output` of the stage.

    Yield a row. splits: as JSON, statistics for the manifest by split. files, hashes: as JSON the sizes of the files, and the hash
    of `hashes` (`write_hashes`). loss, shift, deviation: of the held-out text (`_shift`).
    """
    tokenizer, domain = final_tokenizer(work), work.domains[item.domain]
    folder = work.stage.path(f"write/output/{domain.name}")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    folder.mkdir(parents=True)
    counts = {split: _Counts(tokenizer.size) for split in SPLITS}
    for split in SPLITS:
        write_tokens(folder / split, _documents(work, item, split, counts[split]))
    slot_R = tokenizer.slot_rows[domain.slot]
    np.save(folder / ROWS_NAME, slot_R[slot_R >= 0])
    np.save(folder / FREQUENCIES_NAME, counts["train"].samples_SV.sum(axis=0))
    files, hashes = write_hashes(folder)
    loss, shift, deviation = _shift(counts["train"].samples_SV, counts["held_out"].samples_SV, slot_R)
    splits = {split: counts[split].record() for split in SPLITS}
    values = {"splits": json.dumps(splits), "files": json.dumps(files), "hashes": hashes}
    yield pa.Table.from_pylist([values | {"loss": loss, "shift": shift, "deviation": deviation}])


class _Counts:
    """Counts of the documents of a domain and split. samples_SV: number of each token id in S random parts of the text, int64."""

    def __init__(self, vocabulary: int) -> None:
        self._sums = Counter[str]()
        self.samples_SV = np.zeros((_SAMPLES, vocabulary), np.int64)

    def add(self, table: pa.Table, ids: list[np.ndarray]) -> None:
        """Count documents. table: their rows of `ENCODED`. ids: their token ids."""
        self._sums["documents"] += table.num_rows
        for name in ("bytes", "folded"):
            self._sums[name] += pc.sum(table[name]).as_py()
        # by the last byte: candidates have the lowest hashes
        samples = [hold[-1] % _SAMPLES for hold in table["hold"].to_pylist()]
        for sample in {*samples}:
            sample_ids = [ids_T for n, ids_T in zip(samples, ids, strict=True) if n == sample]
            self.samples_SV[sample] += np.bincount(np.concatenate(sample_ids), minlength=self.samples_SV.shape[1])

    def record(self) -> dict[str, int]:
        """Return the statistics of the split for the manifest."""
        counts_V = self.samples_SV.sum(axis=0)
        counted = {name: self._sums[name] for name in ("documents", "bytes", "folded")}
        return counted | {"tokens": int(counts_V.sum()), "unknown": int(counts_V[UNK])}


def _documents(work: Work, item: WriteItem, split: str, counts: _Counts) -> Iterator[np.ndarray]:
    """Yield the token ids of each document of a split in order, and count them."""
    groups = [candidates_of(item.domain), others_of(item.domain)][: 1 if split == "held_out" else 2]
    held_out = pa.array(item.held_out, pa.int64())
    for number in range(item.blocks):
        table = pa.concat_tables([work.stage.read(f"encode/{numbered(number)}", group) for group in groups])
        is_held_out = pc.is_in(table["document"], held_out)
        documents = table.filter(is_held_out if split == "held_out" else pc.invert(is_held_out)).sort_by("document")
        if documents.num_rows:
            ids = ids_of(documents)
            counts.add(documents, ids)
            yield from ids


def _shift(train_SV: np.ndarray, held_out_SV: np.ndarray, slot_R: np.ndarray) -> tuple[float, float, float]:
    """Return the unigram loss of the held-out tokens in nats, how much it is above the loss of random samples of the domain, and
    the standard deviation of this difference for as many tokens as are held out.

    Passing documents over may leave held-out text that is unlike the rest, whose losses then say little about the domain. The loss
    of a sample is what it would be if the sample were held out: the model counts all other tokens of the domain. train_SV,
    held_out_SV: token counts. slot_R: id of each row of the domain's slot, -1 for a row without one.
    """
    total_V, held_out_V = (train_SV + held_out_SV).sum(axis=0), held_out_SV.sum(axis=0)
    loss = _loss(train_SV.sum(axis=0), held_out_V, slot_R)
    samples_SV = [sample_V for sample_V in train_SV + held_out_SV if 0 < sample_V.sum() < total_V.sum()]
    if not held_out_V.sum() or not samples_SV:
        return loss, 0.0, 0.0
    losses_S = np.array([_loss(total_V - sample_V, sample_V, slot_R) for sample_V in samples_SV])
    # the variance of a mean over tokens is inverse to their number
    size = np.mean([sample_V.sum() for sample_V in samples_SV]) / held_out_V.sum()
    return loss, loss - float(losses_S.mean()), float(losses_S.std() * np.sqrt(size))


def _loss(model_V: np.ndarray, text_V: np.ndarray, slot_R: np.ndarray) -> float:
    """Return the loss of tokens in nats, with a unigram model of other tokens; 0 for no tokens."""
    ids = slot_R[slot_R >= 0]
    return float(text_V[ids] @ unigram_nats(model_V, slot_R)[ids] / max(1, text_V[ids].sum()))
