"""Which documents are held out: those that do not repeat other text of their domain, so that a loss is of text that is new.

A *window* is 13 tokens in a row of a document, without its <eot>; a shorter document is one window. The *overlap* of a document is
the fraction of its windows that stand in another document of the domain, trained on or not. Counting all others, and not only
those that are trained on, makes the choice simple: a document that is not held out may be trained on and changes no overlap.

Other domains do not count, so that what is held out of a domain follows from its own text. Windows are compared by a hash of
64 bits: two different ones that share it would be counted as equal, never the other way round.

Shape suffixes: T tokens of some documents end to end, C candidates, K their windows, U their different windows, P places.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pangu_sigma.data.manifest import OverlapRecord
from pangu_sigma.errors import DataError

WINDOW = 13
"""Tokens of a window: long enough that equal ones are copies and not chance (our choice; GPT-3 compared 13 words)."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_CHUNK = 1 << 16
"""Tokens that are compared at a time: their hashes fit in the cache."""


@dataclass(frozen=True)
class Demand:
    """What held-out text must be: that many documents, and tokens, of an overlap of `limit` at most."""

    documents: int
    tokens: int
    limit: float


def choose_held_out(
    name: str, documents: Sequence[np.ndarray], candidates: Sequence[int], demand: Demand
) -> tuple[list[int], OverlapRecord]:
    """Numbers of the documents to hold out, ascending, and how much of them stands in the others.

    The first of the candidates whose overlap is within the limit are taken until both numbers are reached, or all the same when
    only that of documents is not. name: the domain's. documents: token ids of each, its <eot> last. candidates: numbers of
    documents, first choice first. Raises DataError when there are too few tokens.
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


def _too_few(name: str, tokens: int, good_C: np.ndarray, demand: Demand) -> str:
    return (
        f"domain {name}: {tokens:,} tokens can be held out, data.min_held_out_tokens={demand.tokens:,} are wanted; of the "
        f"{len(good_C):,} documents that may be held out, {(~good_C).sum():,} have more than data.max_overlap={demand.limit:g} of "
        f"their windows of {WINDOW} tokens in other documents; pass more --input text of this domain, raise data.held_out, or "
        "lower data.min_held_out_tokens; a higher data.max_overlap makes losses those of text that was trained on"
    )


class _Windows:
    """The windows of some candidates, and where they stand: in which candidates, and whether in another document.

    owner_K, which_K: candidate, and number among the different ones, of each window. finder_P, found_P: the same for each place P
    of any candidate where such tokens stand, as those of a short document do in a longer one. others_U: True where others have it.
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
        # Nearly all hashes of other text are of no window here: their first bits tell it without a search.
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
        """Where windows stand in some documents: numbers of the documents, and of the windows."""
        for first, text in _texts(documents):
            for length, hashes_T in text.hashes(self._lengths):
                starts = np.flatnonzero(text.whole(length) & self._first_bits[hashes_T >> self._shift])
                hashes = hashes_T[starts]
                which = np.searchsorted(self._hashes_U, hashes).clip(max=len(self._hashes_U) - 1)
                equal = self._hashes_U[which] == hashes
                yield first + text.numbers(starts[equal]), which[equal].astype(np.int32)

    def overlaps(self) -> np.ndarray:
        """Fraction of the windows of each candidate that stand in any other document, [C]; 1 where there is no token."""
        some_U = np.zeros(len(self._hashes_U), np.int32)
        some_U[self._found_P] = self._finder_P
        standing_U = self._others_U.copy()
        standing_U[self._found_P[some_U[self._found_P] != self._finder_P]] = True
        found_C = np.bincount(self._owner_K, standing_U[self._which_K], self._candidates)
        count_C = np.bincount(self._owner_K, minlength=self._candidates)
        return np.where(count_C, found_C / np.maximum(count_C, 1), 1.0)

    def in_training(self, held_out: Sequence[int]) -> tuple[int, float]:
        """Number of windows of some candidates, and the fraction that stands in the text if all but these is trained on."""
        chosen_C = np.isin(np.arange(self._candidates), held_out)
        standing_U = self._others_U.copy()
        standing_U[self._found_P[~chosen_C[self._finder_P]]] = True
        own_K = chosen_C[self._owner_K]
        count = int(own_K.sum())
        return count, float(standing_U[self._which_K[own_K]].sum() / max(1, count))


class _Text:
    """Some documents end to end, without their <eot>."""

    def __init__(self, documents: Sequence[np.ndarray]) -> None:
        self._lengths = np.array([len(ids) - 1 for ids in documents])
        self._ends = np.cumsum(self._lengths)
        self._ids_T = np.concatenate([ids[:-1] for ids in documents])
        self._left_T = np.repeat(self._ends, self._lengths) - np.arange(len(self._ids_T))

    def hashes(self, lengths: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Each of some lengths and, for every place, the hash of so many tokens from there on, [T - length + 1] uint64."""
        mixed_T = _mixed(self._ids_T)
        hashes_T = np.zeros_like(mixed_T)
        for length in range(1, min(WINDOW, len(mixed_T)) + 1):
            hashes_T = hashes_T[: len(mixed_T) - length + 1] * _FACTOR + mixed_T[length - 1 :]
            if length in lengths:
                yield length, hashes_T

    def whole(self, length: int) -> np.ndarray:
        """True where so many tokens are of one document, [T - length + 1]."""
        return self._left_T[: len(self._left_T) - length + 1] >= length

    def own_windows(self, length: int) -> np.ndarray:
        """Places where a window of this length begins: below WINDOW only documents that are so short are one."""
        if length == WINDOW:
            return np.flatnonzero(self.whole(length))
        return (self._ends - length)[self._lengths == length]

    def numbers(self, starts: np.ndarray) -> np.ndarray:
        """Numbers of the documents that some places are of, int32."""
        return np.searchsorted(self._ends, starts, side="right").astype(np.int32)


def _texts(documents: Iterable[np.ndarray]) -> Iterator[tuple[int, _Text]]:
    """Documents in order, some at a time, and the number of the first of them."""
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
    """A number of 64 bits for each id, in which all bits of the id count everywhere (the finaliser of splitmix64)."""
    mixed_T = ids_T.astype(np.uint64) * _FACTOR + _FACTOR
    mixed_T = (mixed_T ^ (mixed_T >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed_T = (mixed_T ^ (mixed_T >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed_T ^ (mixed_T >> np.uint64(31))
