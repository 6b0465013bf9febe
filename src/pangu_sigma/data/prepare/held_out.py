"""Passes `overlap` and `choose`: candidates of each domain → which of them are held out, without documents that repeat other text.

A *window* is an n-gram of 13 tokens of a document, without its <eot>; a shorter document is one window. *Boilerplate* are
windows that occur in more than data.boilerplate_documents documents: footers, licences, lines of blanks. They belong to the domain,
held out or not. The *overlap* of a document is the fraction of its windows that occur in another document of the domain, trained on
or not, and are *clear*: they touch no boilerplate. It is 1 if no window is clear, or if more than data.max_boilerplate of them are
boilerplate: such a document says nothing new. Whether another document is held out changes no overlap.

Other domains do not count, so that the held-out set of a domain depends on its own text only. Windows are compared by hashes of 64
bits: different windows with the same hash count as equal, never the other way round.

Shape suffixes: T tokens of some documents end to end, G n-grams of documents, C candidates, K their windows, U their distinct
windows, P pairs of a document and a distinct window that occurs in it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pangu_sigma.data.manifest import OverlapRecord
from pangu_sigma.data.prepare.encoding import CANDIDATES, OTHERS, encoded_documents, ids_of
from pangu_sigma.data.prepare.selection import Selection, held_out_count, selection_of
from pangu_sigma.data.prepare.stage import Passes, Stage, Work, numbered
from pangu_sigma.data.split_mix import GOLDEN, split_mix
from pangu_sigma.sections import DataConfig

WINDOW = 13
"""Number of tokens of a window: long enough that equal ones are copies and not chance (our choice; GPT-3 compared 13 words)."""

_FACTOR = np.uint64(GOLDEN)
_CHUNK = 1 << 16
"""Number of tokens compared at a time: their hashes fit in the CPU cache."""
_PREFIX_BITS = 3
"""Bits of a hash's prefix above those that number the windows: of 8 to 16 other windows one has the prefix of a window."""
_PARTS = 64
"""Number of parts, at most, in which the overlap of a domain is counted: one process adds them up, and all cores have enough."""

_OverlapItem = tuple[int, list[int]]
"""A domain, and a part of the blocks that have documents of it."""


def hold_out(passes: Passes, selection: Selection, manifest_config: dict[str, Any]) -> list[str]:
    """Choose the documents to hold out of each domain. Return a message for each domain: why too few tokens can be held out, or "".
    manifest_config: settings and text that decide the result."""
    passes.begin("overlap")
    passes.map(_count_overlap, _overlap_items(selection))
    passes.begin("choose", manifest_config, passes.work.config.model.seq_length)
    return [table["shortage"][0].as_py() for table in passes.map(_choose, range(len(passes.work.domains)))]


def _overlap_items(selection: Selection) -> list[_OverlapItem]:
    """Return the items of the pass `overlap`: pairs of a domain and a part of its blocks, at most _PARTS of them for a domain."""
    items = list[_OverlapItem]()
    for n, domain in enumerate(selection.domains):
        size = max(1, -(-len(domain.blocks) // _PARTS))
        items += [(n, domain.blocks[first : first + size]) for first in range(0, len(domain.blocks), size)]
    return items


def _candidates(stage: Stage, domain: int) -> pa.Table:
    """Return the candidates of a domain, documents that may be held out, in the order in which they are examined."""
    blocks, columns = selection_of(stage).domains[domain].blocks, ["document", "rank", "tokens", "ids"]
    return pa.concat_tables(encoded_documents(stage, blocks, domain, CANDIDATES, columns)).sort_by("rank")


@functools.lru_cache(maxsize=1)
def _finder(stage: Stage, domain: int, key: str) -> Finder:
    """Return the search for the windows of a domain's candidates. The last one is cached, because it may take long to make, and the
    items of a domain come one after another. key: key of the pass `encode`, which stands for the candidates in the cache."""
    return Finder(ids_of(_candidates(stage, domain)))


def _count_overlap(work: Work, item: _OverlapItem) -> Iterator[pa.Table]:
    """Count in how many documents of a part of a domain's blocks, candidates left out, each window of a candidate occurs. Yield a
    table of the windows that occur, indices in `Finder.hashes_U`, and of their counts."""
    domain, blocks = item
    tables = encoded_documents(work.stage, blocks, domain, OTHERS, ["tokens", "ids"])
    windows, counts = _finder(work.stage, domain, work.stage.key("encode")).count(
        ids for table in tables for ids in ids_of(table)
    )
    yield pa.table({"window": windows, "count": counts})


def _choose(work: Work, domain: int) -> Iterator[pa.Table]:
    """Choose the documents of a domain to hold out. Yield a table of one row: numbers of the documents, ascending; OverlapRecord as
    JSON; and shortage, a message if there are too few tokens, or ""."""
    stage, selection = work.stage, selection_of(work.stage)
    data = work.config.data_of(domain)
    parts = [number for number, (item_domain, _) in enumerate(_overlap_items(selection)) if item_domain == domain]
    tables = (stage.read(f"overlap/{numbered(part)}") for part in parts)
    counts = ((table["window"].to_numpy(), table["count"].to_numpy()) for table in tables)
    candidates = _candidates(stage, domain)
    choice = choose_held_out(
        ids_of(candidates),
        _finder(stage, domain, stage.key("encode")),
        counts,
        data,
        held_out_count(selection.domains[domain].kept, data.held_out),
        work.config.model.seq_length + 1,
    )
    held_out = candidates.take(pa.array(choice.numbers, pa.int64())).sort_by("document")
    yield pa.table(
        {
            "documents": pa.array([held_out["document"].to_pylist()], pa.list_(pa.int64())),
            "overlap": [choice.overlap.model_dump_json()],
            "shortage": [choice.shortage],
        }
    )


@dataclass(frozen=True)
class HeldOutChoice:
    """Choice of candidates to hold out. numbers: indices of the candidates, ascending. overlap: their overlap with other documents.
    shortage: why they have fewer tokens than the minimum, and what to do; "" if they have enough."""

    numbers: list[int]
    overlap: OverlapRecord
    shortage: str


def choose_held_out(
    candidates: Sequence[np.ndarray],
    finder: Finder,
    others: Iterable[tuple[np.ndarray, np.ndarray]],
    data: DataConfig,
    documents: int,
    sample: int,
) -> HeldOutChoice:
    """Choose the documents to hold out of a domain.

    Candidates within the overlap limit are chosen in order until documents and tokens suffice; too few documents are accepted.
    candidates: token ids of each candidate, <eot> last, in the order of choice. finder: search for their windows. others: results
    of `finder.count` for the domain's other documents, in parts. data: limits of the domain. documents: number to hold out.
    sample: number of tokens of a training sample, S + 1: a domain's minimum of held-out tokens cannot be less."""
    sizes_C = np.array([len(ids) for ids in candidates], np.int64)
    windows = _Windows(candidates, finder, others, data.boilerplate_documents)
    overlaps_C = windows.overlaps(data.max_boilerplate)
    held_out = _held_out_of(sizes_C, overlaps_C, data, documents)
    passed_over = [c for c in range(held_out[-1] if held_out else len(candidates)) if overlaps_C[c] > data.max_overlap]
    record = OverlapRecord(
        window=WINDOW,
        wanted=documents,
        max_overlap=data.max_overlap,
        min_tokens=data.min_held_out_tokens,
        passed_over=len(passed_over),
        passed_over_tokens=int(sizes_C[passed_over].sum()),
        boilerplate_windows=int(windows.boilerplate_U.sum()),
        **windows.in_training(held_out),
    )
    tokens = int(sizes_C[held_out].sum())
    is_short = tokens < data.min_held_out_tokens
    shortage = _shortage(sizes_C, overlaps_C, data, tokens, sample) if is_short else ""
    return HeldOutChoice(sorted(held_out), record, shortage)


def _held_out_of(sizes_C: np.ndarray, overlaps_C: np.ndarray, data: DataConfig, wanted_documents: int) -> list[int]:
    """Return the indices of the candidates to hold out, in order: candidates within the overlap limit, until there are
    `wanted_documents`, and enough tokens. A candidate that exceeds the maximum of tokens ends the choice, or is skipped while there
    are too few tokens."""
    held_out, tokens = list[int](), 0
    for candidate in np.flatnonzero(overlaps_C <= data.max_overlap).tolist():
        size, has_enough = int(sizes_C[candidate]), tokens >= data.min_held_out_tokens
        fits = tokens + size <= data.max_held_out_tokens
        if has_enough and (len(held_out) >= wanted_documents or not fits):
            break
        if fits:
            held_out.append(candidate)
            tokens += size
    return held_out


def _shortage(sizes_C: np.ndarray, overlaps_C: np.ndarray, data: DataConfig, tokens: int, sample: int) -> str:
    """Return why only `tokens` tokens can be held out, and the keys to change: a sentence that ends in "or", to which the caller
    adds how to have more text. sample: as in `choose_held_out`."""
    text = (
        f"{tokens:,} tokens can be held out, min_held_out_tokens={data.min_held_out_tokens:,} are wanted; of the {len(sizes_C):,} "
        f"documents that may be held out, {(overlaps_C > data.max_overlap).sum():,} have more than "
        f"max_overlap={data.max_overlap:g} of their windows of {WINDOW} tokens in other documents, or are mostly boilerplate"
    )
    if too_long := (sizes_C > data.max_held_out_tokens).sum():
        text += f"; {too_long:,} of them longer than data.max_held_out_tokens={data.max_held_out_tokens:,}; raise it"
    lower_minimum = f"set min_held_out_tokens={tokens} in the domain's entry; or " if tokens >= sample else ""
    return f"{text}; {lower_minimum}raise its max_overlap or data.max_boilerplate, up to 1; or"


class Finder:
    """Search for the windows of candidates in documents. hashes_U: hashes of the distinct windows, ascending."""

    def __init__(self, candidates: Sequence[np.ndarray]) -> None:
        """candidates: token ids of each candidate, <eot> last."""
        self._lengths = sorted({min(len(ids) - 1, WINDOW) for ids in candidates} - {0})
        hashes = [hash_K for _, _, hash_K in self.windows(candidates)]
        self.hashes_U = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]))
        # `match` looks up the first bits of a hash, which few other n-grams share, because a binary search misses the CPU's cache
        bits = len(self.hashes_U).bit_length() + _PREFIX_BITS
        self._shift = np.uint64(64 - bits)
        self._has_prefix = np.zeros(1 << bits, bool)
        self._has_prefix[(self.hashes_U >> self._shift).astype(np.int64)] = True

    def windows(self, candidates: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield, in parts, the windows of candidates: for each window its candidate, the position of its first token in the tokens
        of all candidates, and its hash. Windows have WINDOW tokens; a shorter candidate has one window, of its own length."""
        sizes_C = np.array([len(ids) - 1 for ids in candidates], np.int64)
        for length, candidate_G, start_G, hash_G in _ngrams(candidates, self._lengths):
            is_window_G = length == np.minimum(sizes_C, WINDOW)[candidate_G]
            yield candidate_G[is_window_G], start_G[is_window_G], hash_G[is_window_G]

    def match(self, hash_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the n-grams that are windows of candidates. Return their positions in `hash_G`, and their indices in `hashes_U`."""
        positions = np.flatnonzero(self._has_prefix[(hash_G >> self._shift).astype(np.int64)])
        windows = np.searchsorted(self.hashes_U, hash_G[positions])
        is_equal = self.hashes_U[np.minimum(windows, len(self.hashes_U) - 1)] == hash_G[positions]
        return positions[is_equal], windows[is_equal].astype(np.int32)

    def occurrences(self, documents: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Find the windows of the candidates in documents. Yields, in parts, document_P and window_P, int32 [P]: the index of a
        document in `documents`, and the index in `hashes_U` of a window that occurs in it. No pair comes twice."""
        for _, document_G, _, hash_G in _ngrams(documents, self._lengths):
            positions, windows = self.match(hash_G)
            # a pair is one number, whose upper 32 bits are the document
            pairs_P = np.unique(document_G[positions].astype(np.int64) << 32 | windows)
            yield (pairs_P >> 32).astype(np.int32), (pairs_P & 0xFFFFFFFF).astype(np.int32)

    def count(self, documents: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the windows that occur in documents, as ascending indices in `hashes_U`, and in how many documents each occurs."""
        counts_U = np.zeros(len(self.hashes_U), np.uint32)
        for _, windows_P in self.occurrences(documents):
            np.add.at(counts_U, windows_P, np.uint32(1))  # NumPy is 20 times as slow with a 1 of another type
        windows = np.flatnonzero(counts_U)
        return windows.astype(np.int32), counts_U[windows]


class _Windows:
    """Windows of the candidates, and in how many documents of the domain they occur.

    owner_K, window_K: candidate of each window, and its index among the distinct windows. candidate_P, window_P: candidate and
    distinct window in it, such as a short document inside a longer one. documents_U: number of documents with a window.
    boilerplate_U, boilerplate_T: True for boilerplate windows, and for tokens in them. is_clear_K: True for windows without any.
    """

    def __init__(
        self,
        candidates: Sequence[np.ndarray],
        finder: Finder,
        others: Iterable[tuple[np.ndarray, np.ndarray]],
        boilerplate: int,
    ) -> None:
        """candidates, finder, others: as in `choose_held_out`. boilerplate: most documents of a window that is no boilerplate."""
        self._sizes_C = np.array([len(ids) - 1 for ids in candidates], np.int64)
        # arrays of millions of windows: int32 where it is enough, and temporary arrays in parts
        parts = ((owner_K, start_K, finder.match(hash_K)[1]) for owner_K, start_K, hash_K in finder.windows(candidates))
        self._owner_K, start_K, self._window_K = _concatenate(3, parts)
        end_K = start_K + np.minimum(self._sizes_C, WINDOW).astype(np.int32)[self._owner_K]
        self._candidate_P, self._window_P = _concatenate(2, finder.occurrences(candidates))
        self.documents_U = np.bincount(self._window_P, minlength=len(finder.hashes_U))
        for windows, counts in others:
            self.documents_U[windows] += counts
        self.boilerplate_U = self.documents_U > boilerplate
        is_boilerplate_K, tokens = self.boilerplate_U[self._window_K], int(self._sizes_C.sum())
        begins_T, ends_T = (np.bincount(edge_K[is_boilerplate_K], minlength=tokens + 1) for edge_K in (start_K, end_K))
        # a token is boilerplate if more boilerplate windows began up to it than ended
        self._boilerplate_T = np.cumsum(begins_T - ends_T)[:-1] > 0
        # a window is clear if equally many boilerplate tokens stand before its end and before its start
        before_T = np.concatenate([[0], np.cumsum(self._boilerplate_T, dtype=np.int32)])
        self._is_clear_K = before_T[end_K] == before_T[start_K]

    def overlaps(self, max_boilerplate: float) -> np.ndarray:
        """Return the overlap of each candidate, float [C]: the fraction of all its windows that occur in another document and are
        clear, that is, share no token with a boilerplate window. It is 1 for a candidate without clear windows, or with more than
        the fraction max_boilerplate of boilerplate windows."""
        is_repeated_K = self.documents_U[self._window_K] > 1  # the candidate itself is one of these documents
        # the last one counts all windows
        masks = (self._is_clear_K & is_repeated_K, self._is_clear_K, self.boilerplate_U[self._window_K], None)
        repeated_C, clear_C, boilerplate_C, windows_C = (
            np.bincount(self._owner_K, mask_K, len(self._sizes_C)) for mask_K in masks
        )
        windows_C = np.maximum(windows_C, 1)
        return np.where((clear_C == 0) | (boilerplate_C / windows_C > max_boilerplate), 1.0, repeated_C / windows_C)

    def in_training(self, held_out: Sequence[int]) -> dict[str, Any]:
        """Return fields of `OverlapRecord` for the candidates with the indices `held_out`: number of their windows, fraction of the
        windows that are clear and occur in documents that are trained on, and fraction of their tokens that is boilerplate."""
        is_held_out_C = np.isin(np.arange(len(self._sizes_C)), held_out)
        held_out_U = np.bincount(self._window_P[is_held_out_C[self._candidate_P]], minlength=len(self.documents_U))
        is_in_training_U = self.documents_U > held_out_U  # more documents than are held out
        is_held_out_K = is_held_out_C[self._owner_K]
        count = int(is_held_out_K.sum())
        repeated = is_in_training_U[self._window_K[is_held_out_K & self._is_clear_K]].sum()
        boilerplate_T = self._boilerplate_T[np.repeat(is_held_out_C, self._sizes_C)]
        share, boilerplate = float(repeated / max(1, count)), float(boilerplate_T.sum() / max(1, len(boilerplate_T)))
        return {"windows": count, "share": share, "boilerplate": boilerplate}


def _concatenate(count: int, parts: Iterable[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """Return `count` int32 arrays that come in parts. parts: tuples with the next part of each array."""
    empty_arrays = (np.empty(0, np.int32),) * count  # for no parts
    return [*map(np.concatenate, zip(empty_arrays, *parts, strict=True))]


def _ngrams(
    documents: Iterable[np.ndarray], lengths: Sequence[int]
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the n-grams of documents, without <eot>, in parts of one length: the length; document_G, int32, the document's index;
    start_G, int32, the position of the first token in the tokens of all documents, end to end; and hash_G, uint64.

    The hash is a polynomial in _FACTOR of the tokens' hashes. lengths: lengths of the n-grams, ascending."""
    first_document = first_token = 0  # of the group
    for group in _groups(documents):
        sizes = np.array([len(ids) - 1 for ids in group])
        document_T = np.repeat(np.arange(first_document, first_document + len(group), dtype=np.int32), sizes)
        hash_T = split_mix(np.concatenate([ids[:-1] for ids in group]).astype(np.uint64), GOLDEN)
        tokens = len(hash_T)
        document_ends_T = np.repeat(np.cumsum(sizes), sizes)
        hash_G = np.zeros(tokens + 1, np.uint64)
        for length in range(1, min(lengths[-1] if lengths else 0, tokens) + 1):
            hash_G = hash_G[:-1] * _FACTOR + hash_T[length - 1 :]  # n-grams of the last length, and one more token each
            if length in lengths:
                ends_G = np.arange(length, tokens + 1)
                start_G = np.flatnonzero(ends_G <= document_ends_T[: len(ends_G)])  # not across documents
                yield length, document_T[start_G], (first_token + start_G).astype(np.int32), hash_G[start_G]
        first_document, first_token = first_document + len(group), first_token + tokens


def _groups(documents: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yield documents in groups of _CHUNK tokens or a little more."""
    size, group = 0, list[np.ndarray]()
    for ids in documents:
        group.append(ids)
        size += len(ids)
        if size >= _CHUNK:
            yield group
            size, group = 0, []
    if group:
        yield group
