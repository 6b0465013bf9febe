"""Passes `sample`: blocks → text that English pieces are learned from; `count`: → counts of all pieces, for the rows of the slots;
and `encode`: → token ids of the tokenizer."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pangu_sigma.data.prepare.blocks import GROUP_BITS, Work, in_block
from pangu_sigma.data.prepare.selection import DomainSelection
from pangu_sigma.data.prepare.stages.stage import Stage, numbered
from pangu_sigma.domains import Domain
from pangu_sigma.text.documents import Segments
from pangu_sigma.text.segmentation import english_runs
from pangu_sigma.text.sentencepieces import alpha_model
from pangu_sigma.text.tokenizer import Tokenizer, segment

_LEARNED_FROM = 256
"""Characters of English text and code that a piece is learned from, of 4,096 pieces at least. Our choice: half as many again save
0.1 % of the tokens of other packaged text, and take half as long again."""
_BATCH = 256
"""Documents that are Python objects at a time."""

SAMPLED = pa.schema({"domain": pa.int16(), "text": pa.string()})
"""Row of an English run that pieces are learned from."""
ENCODED = pa.schema(
    {
        "document": pa.int64(),
        "domain": pa.int16(),
        "rank": pa.int64(),
        "hold": pa.binary(16),
        "bytes": pa.int64(),
        "folded": pa.int64(),
        "tokens": pa.int64(),
        "ids": pa.list_(pa.int32()),
    }
)
"""Row of an encoded document. rank, hold, bytes: as in `selection` and `reading`. folded: characters that normalisation changed.
tokens: number of the ids. A row group of a block's file has documents of one domain, either candidates or others."""
CANDIDATES, OTHERS = ds.field("rank").is_valid(), ds.field("rank").is_null()
"""Conditions for rows of documents that may be held out, and of all others."""


def _selected_rows(work: Work, block: int, *columns: str) -> pa.Table:
    """Return columns of the selected documents of a block, in order, with `rank` and `runs_before`."""
    selection = work.stage.read("select/documents", rows=in_block(block))
    name = f"read/{numbered(block >> GROUP_BITS)}"
    documents = work.stage.read(name, ["document", *columns], in_block(block))
    rows = documents.filter(pc.is_in(documents["document"], selection["document"]))
    return rows.append_column("rank", selection["rank"]).append_column("runs_before", selection["runs_before"])


def selected_documents(work: Work, block: int, *columns: str) -> Iterator[tuple[Domain, Segments, dict[str, Any]]]:
    """Yield the kept documents of a block, in order: domain, text, and a row with `rank` and these columns."""
    for batch in _selected_rows(work, block, "domain", "languages", "texts", *columns).to_batches(_BATCH):
        for row in batch.to_pylist():
            yield work.domains[row["domain"]], tuple(zip(row.pop("languages"), row.pop("texts"), strict=True)), row


def sample_steps(domains: Sequence[DomainSelection], pieces: int) -> tuple[int, ...]:
    """Return the step between the sampled English runs of each domain, so that there is as much text of every domain that has some.

    pieces: number of English pieces to learn.
    """
    limit = _LEARNED_FROM * max(pieces, 4_096) // max(1, sum(domain.runs > 0 for domain in domains))
    return tuple(max(1, -(-domain.characters // limit)) if domain.runs else 0 for domain in domains)


def sample_block(work: Work, block: int, steps: Sequence[int]) -> Iterator[pa.Table]:
    """Return the text of a block that pieces are learned from: English runs of each domain, at its step; 0: none."""
    table = _selected_rows(work, block, "domain", "runs", "texts")
    certain = table.filter(pc.and_(pc.is_null(table["rank"]), pc.greater(table["runs"], 0)))
    sampled = list[dict[str, Any]]()
    for index, row in enumerate(certain.select(["domain", "runs", "runs_before"]).to_pylist()):
        step = steps[row["domain"]]
        if (first := -row["runs_before"] % step) < row["runs"]:
            language, texts = work.domains[row["domain"]].language, certain["texts"][index].as_py()
            all_runs = [run for text in texts for run in english_runs(text, language)]
            sampled += [{"domain": row["domain"], "text": run} for run in all_runs[first::step]]
    yield pa.Table.from_pylist(sampled, SAMPLED)


@functools.lru_cache(maxsize=1)
def _tokenizer(english: bytes, slots: int, rows: bytes) -> Tokenizer:
    """Make a tokenizer. rows: int32 [slots, R] as bytes; none: every slot has a row for every id."""
    if not rows:
        return Tokenizer.whole(alpha_model(), english, slots)
    return Tokenizer(alpha_model(), english, np.frombuffer(rows, np.int32).reshape(slots, -1))


def full_tokenizer(work: Work) -> Tokenizer:
    """Return the tokenizer with a row for every id, of the English pieces in the stage."""
    return _tokenizer(work.stage.value("sample/english"), len(work.domains.slot_names), b"")


def final_tokenizer(work: Work) -> Tokenizer:
    """Return the tokenizer with the slot rows in the stage."""
    slots = len(work.domains.slot_names)
    return _tokenizer(work.stage.value("sample/english"), slots, work.stage.value("count/rows"))


def count_block(work: Work, block: int) -> Iterator[pa.Table]:
    """Count the pieces of a block's documents that are certain to be trained on: for each slot, ids and their counts."""
    tokenizer, ids_of_slot = full_tokenizer(work), defaultdict[int, list[np.ndarray]](list)
    for domain, segments, row in selected_documents(work, block):
        if row["rank"] is None:
            ids_of_slot[domain.slot].append(tokenizer.sample_runs(segment(segments, domain), domain))
    for slot in range(len(work.domains.slot_names)):
        counts_V = np.bincount(np.concatenate([np.empty(0, np.int32), *ids_of_slot[slot]]))
        ids = np.flatnonzero(counts_V)
        yield pa.table({"slot": np.full(len(ids), slot, np.int16), "id": ids, "count": counts_V[ids]})


def summed(counts: Iterable[pa.Table], slots: int, size: int) -> np.ndarray:
    """Return the sum of the results of `count_block`, int64 [slots, V]."""
    total = np.zeros((slots, size), np.int64)
    for table in counts:
        total[table["slot"].to_numpy(), table["id"].to_numpy()] += table["count"].to_numpy()
    return total


def encode_block(work: Work, block: int) -> Iterator[pa.Table]:
    """Encode the kept documents of a block."""
    tokenizer, groups = final_tokenizer(work), defaultdict[tuple[int, bool], list[dict[str, Any]]](list)
    for domain, segments, row in selected_documents(work, block, "hold", "bytes"):
        runs = segment(segments, domain)
        ids, folded = tokenizer.sample_runs(runs, domain), tokenizer.changed_by_normalisation(runs)
        group = groups[domain.index, row["rank"] is not None]
        group.append(row | {"folded": folded, "tokens": len(ids), "ids": ids})
    yield ENCODED.empty_table()
    yield from (pa.Table.from_pylist(groups[key], ENCODED) for key in sorted(groups))


def encoded(
    stage: Stage, blocks: Iterable[int], domain: int, rows: ds.Expression, columns: list[str] = ENCODED.names
) -> Iterator[pa.Table]:
    """Yield columns of the encoded documents of a domain, one table at least. blocks: their indices. rows: condition of the
    documents, such as `CANDIDATES`."""
    yield ENCODED.empty_table().select(columns)
    of_domain = (ds.field("domain") == domain) & rows
    yield from (stage.read(f"encode/{numbered(block)}", columns, of_domain) for block in blocks)


def ids_of(table: pa.Table) -> list[np.ndarray]:
    """Return the token ids of each document of a table."""
    if not table.num_rows:
        return []
    lists = table["ids"].combine_chunks()
    return np.split(lists.flatten().to_numpy(), np.cumsum(table["tokens"].to_numpy())[:-1])
