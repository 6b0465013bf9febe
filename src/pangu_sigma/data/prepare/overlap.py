"""Decontamination of the held-out set: documents that repeat other text of their domain are not held out.

A *window* is an n-gram of 13 tokens of a document, without its <eot>; a shorter document is one window. The *overlap* of a document
is the fraction of its windows that occur in another document of the domain, trained on or not. Counting all others, not only those
that are trained on, makes the choice simple: whether another document is held out changes no overlap.

Other domains do not count, so that the held-out set of a domain depends on its own text only. Windows are compared by hashes of 64
bits: different windows with the same hash count as equal, never the other way round.

Shape suffixes: T tokens of some documents end to end, C candidates, K their windows, U their distinct windows, P occurrences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pangu_sigma.data.manifest import OverlapRecord
from pangu_sigma.errors import DataError

WINDOW = 13
"""Number of tokens of a window: long enough that equal ones are copies and not chance (our choice; GPT-3 compared 13 words)."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_CHUNK = 1 << 16
"""Number of tokens compared at a time: their hashes fit in the CPU cache."""


@dataclass(frozen=True)
class HeldOutSize:
    """Size of the held-out set: target number of documents, minimum number of tokens, and maximum overlap `limit` of a document."""

    documents: int
    tokens: int
    limit: float


def choose_held_out(
    name: str, documents: Sequence[np.ndarray], candidates: Sequence[int], demand: HeldOutSize
) -> tuple[list[int], OverlapRecord]:
    """Choose the documents to hold out. Return their numbers, ascending, and their overlap with the others.

    Candidates within the overlap limit are taken in order until documents and tokens suffice; too few documents are accepted.
    name: the domain's. documents: token ids of each, its <eot> last. candidates: numbers of documents, first choice first.
    Raises DataError if there are too few tokens.
    """
    others = sorted(set(range(len(documents))) - set(candidates))
    windows = _Windows([documents[number] for number in candidates], (documents[number] for number in others))
    sizes_C = np.array([len(documents[number]) for number in candidates])
    good_C = windows.overlaps() <= demand.limit
    good = np.flatnonzero(good_C)
    enough = int(np.searchsorted(np.cumsum(sizes_C[good]), demand.tokens)) + 1
    taken = good[: max(demand.documents, enough)].tolist()
    tokens = int(sizes_C[taken].sum())
    if not taken or tokens < demand.tokens:
        raise DataError(_too_few(name, tokens, good_C, demand))
    passed_over = np.flatnonzero(~good_C[: taken[-1]])
    count, share = windows.in_training(taken)
    record = OverlapRecord(
        window=WINDOW,
        windows=count,
        share=share,
        by_hash_alone=windows.in_training(range(demand.documents))[1],
        wanted=demand.documents,
        passed_over=len(passed_over),
        passed_over_tokens=int(sizes_C[passed_over].sum()),
    )
    return sorted(candidates[candidate] for candidate in taken), record


def _too_few(name: str, tokens: int, good_C: np.ndarray, demand: HeldOutSize) -> str:
    return (
        f"domain {name}: {tokens:,} tokens can be held out, data.min_held_out_tokens={demand.tokens:,} are wanted; of the "
        f"{len(good_C):,} documents that may be held out, {(~good_C).sum():,} have more than data.max_overlap={demand.limit:g} of "
        f"their windows of {WINDOW} tokens in other documents; pass more --input text of this domain, raise data.held_out, or "
        "lower data.min_held_out_tokens; a higher data.max_overlap makes losses those of text that was trained on"
    )


class _Windows:
    """Windows of the candidates, and where they occur: in which candidates, and whether in another document.

    owner_K, which_K: candidate of each window, and its number among the distinct windows. finder_P, found_P: the same for each
    occurrence in any candidate, such as a short document inside a longer one. others_U: True if it occurs in another document.
    """

    def __init__(self, candidates: Sequence[np.ndarray], others: Iterable[np.ndarray]) -> None:
        self._candidates = len(candidates)
        self._lengths = sorted({min(len(ids) - 1, WINDOW) for ids in candidates} - {0})
        owners, hashes = [np.empty(0, np.int32)], [np.empty(0, np.uint64)]
        for first, text in _texts(candidates):
            for length, hashes_T in text.hashes(self._lengths):
                starts = text.own_windows(length)
                owners.append(first + text.numbers(starts))
                hashes.append(hashes_T[starts])
        self._owner_K = np.concatenate(owners)
        self._hashes_U, which_K = np.unique(np.concatenate(hashes), return_inverse=True)
        self._which_K = which_K.astype(np.int32)
        # Nearly all hashes of other text match no window here: their first bits show it without a search.
        bits = len(self._hashes_U).bit_length() + 3
        self._shift = np.uint64(64 - bits)
        self._first_bits = np.zeros(1 << bits, bool)
        self._first_bits[self._hashes_U >> self._shift] = True
        finders, found = zip((np.empty(0, np.int32),) * 2, *self._find(candidates), strict=True)
        self._finder_P, self._found_P = np.concatenate(finders), np.concatenate(found)
        self._others_U = np.zeros(len(self._hashes_U), bool)
        for _, found_U in self._find(others):
            self._others_U[found_U] = True

    def _find(self, documents: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Find the windows in some documents. Yields numbers of the documents, and of the windows that occur in them."""
        for first, text in _texts(documents):
            for length, hashes_T in text.hashes(self._lengths):
                starts = np.flatnonzero(text.whole(length) & self._first_bits[hashes_T >> self._shift])
                hashes = hashes_T[starts]
                which = np.searchsorted(self._hashes_U, hashes).clip(max=len(self._hashes_U) - 1)
                equal = self._hashes_U[which] == hashes
                yield first + text.numbers(starts[equal]), which[equal].astype(np.int32)

    def overlaps(self) -> np.ndarray:
        """Return the fraction of each candidate's windows that occur in any other document, [C]; 1 for one without tokens."""
        some_U = np.zeros(len(self._hashes_U), np.int32)
        some_U[self._found_P] = self._finder_P
        standing_U = self._others_U.copy()
        standing_U[self._found_P[some_U[self._found_P] != self._finder_P]] = True
        found_C = np.bincount(self._owner_K, standing_U[self._which_K], self._candidates)
        count_C = np.bincount(self._owner_K, minlength=self._candidates)
        return np.where(count_C, found_C / np.maximum(count_C, 1), 1.0)

    def in_training(self, held_out: Sequence[int]) -> tuple[int, float]:
        """Return the number of windows of these candidates, and the fraction of them that occurs in all other documents."""
        chosen_C = np.isin(np.arange(self._candidates), held_out)
        standing_U = self._others_U.copy()
        standing_U[self._found_P[~chosen_C[self._finder_P]]] = True
        own_K = chosen_C[self._owner_K]
        count = int(own_K.sum())
        return count, float(standing_U[self._which_K[own_K]].sum() / max(1, count))


class _Text:
    """Several documents end to end, without their <eot>."""

    def __init__(self, documents: Sequence[np.ndarray]) -> None:
        self._lengths = np.array([len(ids) - 1 for ids in documents])
        self._ends = np.cumsum(self._lengths)
        self._ids_T = np.concatenate([ids[:-1] for ids in documents])
        self._left_T = np.repeat(self._ends, self._lengths) - np.arange(len(self._ids_T))

    def hashes(self, lengths: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each length with the rolling hash of the `length` tokens from every position on, uint64 [T - length + 1]."""
        mixed_T = _mixed(self._ids_T)
        hashes_T = np.zeros_like(mixed_T)
        for length in range(1, min(WINDOW, len(mixed_T)) + 1):
            hashes_T = hashes_T[: len(mixed_T) - length + 1] * _FACTOR + mixed_T[length - 1 :]
            if length in lengths:
                yield length, hashes_T

    def whole(self, length: int) -> np.ndarray:
        """Return True for positions from which `length` tokens are of one document, [T - length + 1]."""
        return self._left_T[: len(self._left_T) - length + 1] >= length

    def own_windows(self, length: int) -> np.ndarray:
        """Return the positions where a window of this length begins: below WINDOW only documents of just that length have one."""
        if length == WINDOW:
            return np.flatnonzero(self.whole(length))
        return (self._ends - length)[self._lengths == length]

    def numbers(self, starts: np.ndarray) -> np.ndarray:
        """Return the number of the document at each position, int32."""
        return np.searchsorted(self._ends, starts, side="right").astype(np.int32)


def _texts(documents: Iterable[np.ndarray]) -> Iterator[tuple[int, _Text]]:
    """Group documents in order. Yields the number of the first document of a group, and the group."""
    first, size, some = 0, 0, list[np.ndarray]()
    for ids in documents:
        some.append(ids)
        size += len(ids)
        if size >= _CHUNK:
            yield first, _Text(some)
            first, size, some = first + len(some), 0, []
    if some:
        yield first, _Text(some)


def _mixed(ids_T: np.ndarray) -> np.ndarray:
    """Hash each id to 64 bits (the finaliser of splitmix64)."""
    mixed_T = ids_T.astype(np.uint64) * _FACTOR + _FACTOR
    mixed_T = (mixed_T ^ (mixed_T >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed_T = (mixed_T ^ (mixed_T >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed_T ^ (mixed_T >> np.uint64(31))
