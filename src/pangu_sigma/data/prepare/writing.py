"""Pass `write`: token ids of all blocks → the folder of a domain but its manifest, and statistics.

Shape suffixes: V vocabulary, S random samples, R rows of a slot, T tokens of a document.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pangu_sigma.data.manifest import InputCounts
from pangu_sigma.data.prepare.encoding import CANDIDATES, encoded_documents, ids_of, tokenizer_of
from pangu_sigma.data.prepare.selection import selection_of
from pangu_sigma.data.prepare.stage import Passes, Work, numbered
from pangu_sigma.data.prepared import FREQUENCIES_NAME, ROWS_NAME, SPLITS, unigram_nats
from pangu_sigma.data.token_files import write_hashes, write_tokens
from pangu_sigma.sealed import sync
from pangu_sigma.text.vocabulary import UNK

_SAMPLES = 20
"""Number of random samples of a domain, with which its held-out text is compared."""


def write_domains(passes: Passes) -> list[dict[str, Any]]:
    """Write the folder of each domain, except its manifest, into `write/output` of the stage. Return the fields of each domain's
    `DomainRecord` except `sources`, which the caller adds."""
    passes.begin("write")
    tables = passes.map(_write_domain, range(len(passes.work.domains)))
    return [json.loads(table["record"][0].as_py()) for table in tables]


def _write_domain(work: Work, index: int) -> Iterator[pa.Table]:
    """Write the folder of a domain, except its manifest, into `write/output` of the stage. Yield a table of one row with the fields
    of its `DomainRecord` except `sources`, as JSON. index: index of the domain."""
    tokenizer, domain = tokenizer_of(work), work.domains[index]
    folder = work.stage.path(f"write/output/{domain.name}")
    shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed
    folder.mkdir(parents=True)
    counts = {split: _Counts(tokenizer.size) for split in SPLITS}
    (choice,) = work.stage.read(f"choose/{numbered(index)}").to_pylist()
    selection = selection_of(work.stage).domains[index]
    is_held_out = ds.field("document").isin(pa.array(choice["documents"], pa.int64()))
    for split in SPLITS:
        # held-out documents are candidates, so that nothing else need be read for them
        rows = CANDIDATES & is_held_out if split == "held_out" else ~is_held_out
        tables = encoded_documents(work.stage, selection.blocks, index, rows)
        write_tokens(folder / split, counts[split].counted(table.sort_by("document") for table in tables))
    slot_R = tokenizer.slot_rows[domain.slot]
    rows_R = slot_R[slot_R >= 0]  # without unused rows, -1
    np.save(folder / ROWS_NAME, rows_R)
    np.save(folder / FREQUENCIES_NAME, counts["train"].samples_SV.sum(axis=0))
    files, hashes = write_hashes(folder)
    for path in folder.iterdir():
        sync(path)  # before the pass has a result, which would outlast the files if the machine lost power
    entropy, shift, deviation = _shift(counts["train"].samples_SV, counts["held_out"].samples_SV, slot_R)
    record = {
        "slot": work.domains.slot_names[domain.slot],
        "rows": len(rows_R),
        **selection.model_dump(include={*InputCounts.model_fields}),
        **{split: counts[split].record() for split in SPLITS},
        "unigram_entropy": entropy,
        "shift": shift,
        "shift_deviation": deviation,
        "overlap": json.loads(choice["overlap"]),
        "files": files,
        "hashes": hashes,
    }
    yield pa.table({"record": [json.dumps(record)]})


class _Counts:
    """Counts of the documents of a domain and split, made while the documents pass through `counted`. samples_SV: number of each
    token id in S random samples of the documents, int64, which together are the split."""

    def __init__(self, vocabulary: int) -> None:
        self._sums = Counter[str]()
        self.samples_SV = np.zeros((_SAMPLES, vocabulary), np.int64)

    def counted(self, tables: Iterable[pa.Table]) -> Iterator[np.ndarray]:
        """Yield the token ids of each document of tables with rows of `ENCODED`, after counting the documents of its table."""
        for table in tables:
            documents = ids_of(table)
            self._sums["documents"] += len(documents)
            for name in ("bytes", "folded"):
                self._sums[name] += pc.sum(table[name], min_count=0).as_py()
            # by the last byte of the hash: the first bytes are not random, because candidates have the lowest hashes
            samples = [hold[-1] % _SAMPLES for hold in table["hold"].to_pylist()]
            for sample in {*samples}:
                ids = np.concatenate([ids_T for n, ids_T in zip(samples, documents, strict=True) if n == sample])
                self.samples_SV[sample] += np.bincount(ids, minlength=self.samples_SV.shape[1])
            yield from documents

    def record(self) -> dict[str, int]:
        """Return the fields of `SplitCounts` of the split."""
        counts_V = self.samples_SV.sum(axis=0)
        sums = {name: self._sums[name] for name in ("documents", "bytes", "folded")}
        return sums | {"tokens": int(counts_V.sum()), "unknown": int(counts_V[UNK])}


def _shift(train_SV: np.ndarray, held_out_SV: np.ndarray, slot_R: np.ndarray) -> tuple[float, float, float]:
    """Return three numbers in nats per token: the unigram loss of the held-out tokens; its shift, how much it is above the mean
    loss of random samples of the domain; and the standard deviation of the shift for as many tokens as are held out.

    A large shift means that the held-out text is unlike the domain, so that losses on it say little about the domain. The loss of
    a sample is what it would be if the sample were held out: the unigram model counts all other tokens of the domain. train_SV,
    held_out_SV: token counts of S random samples. slot_R: id of each row of the domain's slot, -1 for a row without an id."""
    total_V, held_out_V = (train_SV + held_out_SV).sum(axis=0), held_out_SV.sum(axis=0)
    loss = _loss(train_SV.sum(axis=0), held_out_V, slot_R)
    samples_SV = [sample_V for sample_V in train_SV + held_out_SV if 0 < sample_V.sum() < total_V.sum()]
    if not held_out_V.sum() or not samples_SV:  # nothing to compare
        return loss, 0.0, 0.0
    losses_S = np.array([_loss(total_V - sample_V, sample_V, slot_R) for sample_V in samples_SV])
    # the variance of a mean over tokens is inverse to their number
    size_ratio = np.mean([sample_V.sum() for sample_V in samples_SV]) / held_out_V.sum()
    return loss, loss - float(losses_S.mean()), float(losses_S.std() * np.sqrt(size_ratio))


def _loss(model_V: np.ndarray, text_V: np.ndarray, slot_R: np.ndarray) -> float:
    """Return the mean loss of tokens in nats, 0 for no tokens. text_V: counts of these tokens. model_V: counts of the tokens that
    make the unigram model. slot_R: as in `unigram_nats`; ids without a row do not count."""
    ids = slot_R[slot_R >= 0]
    return float(text_V[ids] @ unigram_nats(model_V, slot_R)[ids] / max(1, text_V[ids].sum()))
