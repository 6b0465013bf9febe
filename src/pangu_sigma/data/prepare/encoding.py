"""Vocabulary of a preparation, and the token ids of its documents.

Pass `sample`: blocks → text that English pieces are learned from; `count`: → counts of all pieces, for the rows of the slots; both
of documents that cannot be held out. Pass `encode`: blocks → token ids of the tokenizer.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from pangu_sigma.data.prepare.extension import KeptVocabulary
from pangu_sigma.data.prepare.selection import DomainSelection, Selection, selected_documents
from pangu_sigma.data.prepare.stage import Passes, Stage, Work, numbered
from pangu_sigma.data.prepared import TOKENIZER_NAME
from pangu_sigma.text.segmentation import english_runs
from pangu_sigma.text.sentencepieces import alpha_model, read_english, train_english
from pangu_sigma.text.tokenizer import Tokenizer, segment
from pangu_sigma.text.vocabulary import choose_rows

logger = logging.getLogger(__name__)

_LEARNED_FROM = 256
"""Characters of English text and code that a piece is learned from, of 4,096 pieces at least. Our choice: half as many again save
0.1 % of the tokens of other packaged text, and take half as long again."""

_SAMPLED = pa.schema({"domain": pa.int16(), "text": pa.string()})
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


def make_vocabulary(
    passes: Passes, selection: Selection, kept_vocabulary: KeptVocabulary | None, manifest_config: dict[str, Any]
) -> Tokenizer:
    """Build the tokenizer from documents that cannot be held out: first its English pieces, then the token ids that have rows in
    each embedding slot. manifest_config: settings and text that decide the result."""
    work, config = passes.work, passes.work.config
    kept_model = kept_vocabulary and kept_vocabulary.run / TOKENIZER_NAME / "english.model"
    model = config.vocabulary.english_model or kept_model
    passes.begin("sample", *(manifest_config[key] for key in ("english_pieces", "english_model", "kept")))
    if not work.stage.path("sample/english").exists():
        work.stage.put("sample/english", read_english(Path(model)) if model else _learn_english(passes, selection))
    passes.begin("count", config.model.slot_rows, [work.domains.slot_names[domain.slot] for domain in work.domains])
    if not work.stage.path("count/rows").exists():
        work.stage.put("count/rows", _choose_slot_rows(passes, selection, kept_vocabulary).tobytes())
    return tokenizer_of(work)


def _learn_english(passes: Passes, selection: Selection) -> bytes:
    """Learn the English pieces of the vocabulary from a sample of the English runs (stretches of English text) of all domains.
    Return their SentencePiece model."""
    pieces = passes.work.config.vocabulary.english_pieces
    steps = _sample_steps(selection.domains, pieces)
    samples = passes.map(partial(_sample_block, steps=steps), selection.blocks)
    text: list[str] = pa.concat_tables([_SAMPLED.empty_table(), *samples]).sort_by("domain")["text"].to_pylist()
    mib = sum(map(len, text)) / (1 << 20)
    logger.info("building the vocabulary: learning %s English pieces from %.1f MiB of text", f"{pieces:,}", mib)
    return train_english(text, pieces)


def _sample_steps(domains: Sequence[DomainSelection], pieces: int) -> tuple[int, ...]:
    """Return the step n of each domain: every n-th of its English runs is sampled, so that all domains with English runs give
    equally much text, or all they have. pieces: number of English pieces to learn."""
    characters = _LEARNED_FROM * max(pieces, 4_096) // max(1, sum(domain.runs > 0 for domain in domains))
    return tuple(max(1, -(-domain.characters // characters)) for domain in domains)


def _sample_block(work: Work, block: int, steps: Sequence[int]) -> Iterator[pa.Table]:
    """Yield a table of the text of a block that pieces are learned from: in documents that cannot be held out, every n-th English
    run of a domain, counted over all blocks. block: number of the block. steps: n of each domain."""
    runs = list[dict[str, Any]]()
    for domain, segments, row in selected_documents(work, block, "runs", rows=OTHERS & (ds.field("runs") > 0)):
        step = steps[domain.index]
        first = -row["runs_before"] % step  # so that runs_before + first is a multiple of the step
        if first < row["runs"]:
            document_runs = [run for _, text in segments for run in english_runs(text, domain.language)]
            runs += [{"domain": domain.index, "text": run} for run in document_runs[first::step]]
    yield pa.Table.from_pylist(runs, _SAMPLED)


def _choose_slot_rows(passes: Passes, selection: Selection, kept_vocabulary: KeptVocabulary | None) -> np.ndarray:
    """Choose the token id of each row of every embedding slot, int32 [slots, R], -1 for a row without an id: ids whose rows are
    kept come first, then all ids if there are no more than rows, or else the most frequent."""
    domains, rows = passes.work.domains, passes.work.config.model.slot_rows
    slots, tokenizer = range(len(domains.slot_names)), tokenizer_of(passes.work, is_whole=True)
    kept_ids = [kept_vocabulary.ids(tokenizer.vocabulary, domains, n) if kept_vocabulary else [] for n in slots]
    if tokenizer.size <= rows:  # nothing needs to be counted
        all_ids = [[*dict.fromkeys([*ids, *range(tokenizer.size)])] for ids in kept_ids]
        return np.pad(np.array(all_ids, np.int32), ((0, 0), (0, rows - tokenizer.size)), constant_values=-1)
    counts = np.zeros((len(slots), tokenizer.size), np.int64)
    for table in passes.map(_count_block, selection.blocks):
        counts[table["slot"].to_numpy(), table["id"].to_numpy()] += table["count"].to_numpy()
    return np.stack(
        [choose_rows(tokenizer.vocabulary, domains.in_slot(n), counts[n], rows, kept_ids[n]) for n in slots]
    )


def _count_block(work: Work, block: int) -> Iterator[pa.Table]:
    """Count the tokens of a block's documents that cannot be held out, in the whole vocabulary. Yield a table for each slot, with
    the columns slot, id and count."""
    tokenizer, ids_of_slot = tokenizer_of(work, is_whole=True), defaultdict[int, list[np.ndarray]](list)
    for domain, segments, _ in selected_documents(work, block, rows=OTHERS):
        ids_of_slot[domain.slot].append(tokenizer.sample_runs(segment(segments, domain), domain))
    for slot in range(len(work.domains.slot_names)):
        counts_V = np.bincount(np.concatenate([np.empty(0, np.int32), *ids_of_slot[slot]]))
        ids = np.flatnonzero(counts_V)
        yield pa.table({"slot": np.full(len(ids), slot, np.int16), "id": ids, "count": counts_V[ids]})


@lru_cache(maxsize=1)
def _tokenizer(english: bytes, slots: int, rows: bytes) -> Tokenizer:
    """Return a tokenizer; the last one is cached, because units of a pass use the same. english: model of the English pieces.
    slots: number of slots. rows: token ids of their rows, int32 [slots, R] as bytes; b"": each slot has a row for every id."""
    if not rows:
        return Tokenizer.whole(alpha_model(), english, slots)
    return Tokenizer(alpha_model(), english, np.frombuffer(rows, np.int32).reshape(slots, -1))


def tokenizer_of(work: Work, is_whole: bool = False) -> Tokenizer:
    """Return the tokenizer of the preparation, with the slot rows in the stage; is_whole: True for slots with a row for every id,
    as long as the rows are not chosen."""
    slots, rows = len(work.domains.slot_names), b"" if is_whole else work.stage.value("count/rows")
    return _tokenizer(work.stage.value("sample/english"), slots, rows)


def encode(passes: Passes, selection: Selection) -> None:
    """Encode the selected documents."""
    passes.begin("encode")
    passes.map(_encode_block, selection.blocks)


def _encode_block(work: Work, block: int) -> Iterator[pa.Table]:
    """Encode the selected documents of a block. Yield tables of `ENCODED`, which become row groups: a domain's candidates, or its
    other documents, so that a reader can skip the rest."""
    tokenizer, groups = tokenizer_of(work), defaultdict[tuple[int, bool], list[dict[str, Any]]](list)
    for domain, segments, row in selected_documents(work, block, "hold", "bytes"):
        runs = segment(segments, domain)
        ids, folded = tokenizer.sample_runs(runs, domain), tokenizer.changed_by_normalisation(runs)
        groups[domain.index, row["rank"] is not None].append(row | {"folded": folded, "tokens": len(ids), "ids": ids})
    yield ENCODED.empty_table()  # a result needs a table
    yield from (pa.Table.from_pylist(groups[key], ENCODED) for key in sorted(groups))


def encoded_documents(
    stage: Stage, blocks: Iterable[int], domain: int, rows: ds.Expression, columns: list[str] = ENCODED.names
) -> Iterator[pa.Table]:
    """Yield tables of the encoded documents of a domain, at least one. blocks: indices of the blocks to read. rows: condition of
    the documents, such as `CANDIDATES`. columns: columns to read."""
    yield ENCODED.empty_table().select(columns)
    condition = (ds.field("domain") == domain) & rows
    yield from (stage.read(f"encode/{numbered(block)}", columns, condition) for block in blocks)


def ids_of(table: pa.Table) -> list[np.ndarray]:
    """Return the token ids of each document of a table."""
    if not table.num_rows:
        return []
    ids_T = table["ids"].combine_chunks().flatten().to_numpy()  # of all documents, end to end
    return np.split(ids_T, np.cumsum(table["tokens"].to_numpy())[:-1])
