"""Decontamination of the held-out set: documents that repeat other text of their domain are not held out.

A *window* is an n-gram of 13 tokens of a document, without its <eot>; a shorter document is one window. *Boilerplate* are
windows that occur in more than data.boilerplate_documents documents: footers, licences, lines of blanks. They belong to the domain,
held out or not. The *overlap* of a document is the fraction of its windows that occur in another document of the domain, trained on
or not, and touch no boilerplate; it is 1 if all touch boilerplate, or if more than data.max_boilerplate of them are boilerplate:
such a document says nothing new. Counting all others, not only those that are trained on, makes the choice simple: whether another
document is held out changes no overlap.

Other domains do not count, so that the held-out set of a domain depends on its own text only. Windows are compared by hashes of 64
bits: different windows with the same hash count as equal, never the other way round.

Shape suffixes: T tokens of some documents end to end, C candidates, K their windows, U their distinct windows, P pairs of a
candidate and a window that occurs in it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pangu_sigma.data.manifest import OverlapRecord

WINDOW = 13
"""Number of tokens of a window: long enough that equal ones are copies and not chance (our choice; GPT-3 compared 13 words)."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_CHUNK = 1 << 16
"""Number of tokens compared at a time: their hashes fit in the CPU cache."""


@dataclass(frozen=True)
class HeldOutSize:
    """Demands on a held-out set. documents: number wanted. tokens, most: minimum and maximum number of tokens. limit: maximum
    overlap of a document. boilerplate: number of documents above which a window that occurs in all of them is boilerplate.
    max_boilerplate: maximum fraction of a document's windows that are boilerplate. sample: number of tokens that training needs.
    more: advice on how to have more text."""

    documents: int
    tokens: int
    most: int
    sample: int
    limit: float
    boilerplate: int
    max_boilerplate: float
    more: str


@dataclass(frozen=True)
class HeldOutChoice:
    """Numbers of the candidates to hold out, ascending, and their overlap with the others. shortage: why they have fewer tokens
    than the minimum, and what to do; "" if they have enough."""

    numbers: list[int]
    overlap: OverlapRecord
    shortage: str


def choose_held_out(
    candidates: Sequence[np.ndarray],
    finder: Finder,
    others: Iterable[tuple[np.ndarray, np.ndarray]],
    demand: HeldOutSize,
) -> HeldOutChoice:
    """Choose the documents to hold out of a domain.

    Candidates within the overlap limit are taken in order until documents and tokens suffice; too few documents are accepted.
    candidates: token ids of each, its <eot> last, first choice first. finder: result of `finder_of` for the candidates. others:
    results of the finder's `count` for all other documents of the domain, in parts.
    """
    windows = _Windows(candidates, finder, others, demand.boilerplate)
    sizes_C = np.array([len(ids) for ids in candidates], np.int64)
    overlaps_C = np.where(windows.boilerplate() > demand.max_boilerplate, 1.0, windows.overlaps())
    taken = _taken(sizes_C, overlaps_C, demand)
    passed_over = [c for c in range(taken[-1] if taken else len(candidates)) if overlaps_C[c] > demand.limit]
    count, share, boilerplate = windows.in_training(taken)
    record = OverlapRecord(
        window=WINDOW,
        windows=count,
        share=share,
        wanted=demand.documents,
        max_overlap=demand.limit,
        min_tokens=demand.tokens,
        passed_over=len(passed_over),
        passed_over_tokens=int(sizes_C[passed_over].sum()),
        boilerplate=boilerplate,
        boilerplate_windows=int(windows.boilerplate_U.sum()),
    )
    short = sizes_C[taken].sum() < demand.tokens
    return HeldOutChoice(sorted(taken), record, _shortage(sizes_C, overlaps_C, demand) if short else "")


def _taken(sizes_C: np.ndarray, overlaps_C: np.ndarray, demand: HeldOutSize) -> list[int]:
    """Return the candidates to hold out. Documents that exceed the maximum are skipped only while there are too few tokens."""
    taken, tokens = list[int](), 0
    for candidate in np.flatnonzero(overlaps_C <= demand.limit).tolist():
        size, enough = int(sizes_C[candidate]), tokens >= demand.tokens
        if enough and (len(taken) >= demand.documents or tokens + size > demand.most):
            break
        if tokens + size <= demand.most:
            taken.append(candidate)
            tokens += size
    return taken


def _shortage(sizes_C: np.ndarray, overlaps_C: np.ndarray, demand: HeldOutSize) -> str:
    """Return why candidates have too few tokens, and the keys to change."""
    tokens = int(sizes_C[_taken(sizes_C, overlaps_C, demand)].sum())
    text = (
        f"{tokens:,} tokens can be held out, min_held_out_tokens={demand.tokens:,} are wanted; of the {len(sizes_C):,} documents "
        f"that may be held out, {(overlaps_C > demand.limit).sum():,} have more than max_overlap={demand.limit:g} of their windows "
        f"of {WINDOW} tokens in other documents, or are mostly boilerplate"
    )
    if too_long := (sizes_C > demand.most).sum():
        text += f"; {too_long:,} of them longer than data.max_held_out_tokens={demand.most:,}; raise it"
    lower = f"set min_held_out_tokens={tokens} in the domain's entry; or " if tokens >= demand.sample else ""
    return f"{text}; {lower}raise its max_overlap or data.max_boilerplate, up to 1; or {demand.more}"


class Finder:
    """Search for the windows of candidates in documents.

    hashes_U: hashes of the distinct windows, ascending. lengths: numbers of tokens that they have.
    """

    def __init__(self, hashes_U: np.ndarray, lengths: Sequence[int]) -> None:
        self.hashes_U, self.lengths = hashes_U, lengths
        # Hashes are spread evenly: their first bits tell where they are but for one or two. A binary search misses the cache.
        bits = len(hashes_U).bit_length()
        self._shift = np.uint64(64 - bits)
        counts = np.bincount((hashes_U >> self._shift).astype(np.int64), minlength=1 << bits)
        self._begins = np.append(0, np.cumsum(counts)).astype(np.int32)
        self._finer = self._shift - np.uint64(2)  # four bytes a window tell of most others that they are not there
        self._there = np.zeros(1 << bits + 2, bool)
        self._there[(hashes_U >> self._finer).astype(np.int64)] = True

    def find(self, documents: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Find the windows in some documents. Yields pairs of a document's number and a window that occurs in it, each once."""
        for first, text in _texts(documents):
            pairs = [np.empty(0, np.int64)]
            for length, hashes_T in text.hashes(self.lengths):
                for starts, which in self.search(hashes_T):
                    is_whole = text.whole(length)[starts]
                    pairs.append(text.numbers(starts[is_whole]).astype(np.int64) << 32 | which[is_whole])
            pairs_P = np.unique(np.concatenate(pairs))
            yield (first + (pairs_P >> 32)).astype(np.int32), (pairs_P & 0xFFFFFFFF).astype(np.int32)

    def search(self, hashes_T: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield positions in hashes_T, and the number of the window that each equals; windows of nothing are left out."""
        starts = np.flatnonzero(self._there[(hashes_T >> self._finer).astype(np.int64)])
        bucket = (hashes_T[starts] >> self._shift).astype(np.int64)
        at, end = self._begins[bucket], self._begins[bucket + 1]
        while len(starts):
            left = at < end
            at, end, starts = at[left], end[left], starts[left]
            equal = self.hashes_U[at] == hashes_T[starts]
            yield starts[equal], at[equal]
            at, end, starts = at[~equal] + 1, end[~equal], starts[~equal]

    def count(self, documents: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the windows that occur in some documents, ascending, and in how many of them each occurs."""
        counts_U = np.zeros(len(self.hashes_U), np.uint32)
        for _, found_P in self.find(documents):
            np.add.at(counts_U, found_P, np.uint32(1))  # of the same kind: numpy is 20 times as slow with another
        which = np.flatnonzero(counts_U)
        return which.astype(np.int32), counts_U[which]


def finder_of(candidates: Sequence[np.ndarray]) -> Finder:
    """Return the search for all windows of candidates. candidates: token ids of each, its <eot> last."""
    hashes = [hashes for _, _, hashes in _own_windows(candidates)]
    return Finder(np.unique(np.concatenate([np.empty(0, np.uint64), *hashes])), _lengths(candidates))


def _lengths(candidates: Sequence[np.ndarray]) -> list[int]:
    """Return the numbers of tokens that windows of candidates have, ascending."""
    return sorted({min(len(ids) - 1, WINDOW) for ids in candidates} - {0})


def _own_windows(candidates: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield, in parts, the windows of candidates: for each window its candidate, the number of its first token among the tokens of
    all candidates, and its hash."""
    lengths, begins_C = _lengths(candidates), np.cumsum([0, *(len(ids) - 1 for ids in candidates)])
    for first, text in _texts(candidates):
        for length, hashes_T in text.hashes(lengths):
            own = text.own_windows(length)
            yield first + text.numbers(own), (begins_C[first] + own).astype(np.int32), hashes_T[own]


def _numbers(finder: Finder, hashes_K: np.ndarray) -> np.ndarray:
    """Return the number of each window among the finder's distinct windows, int32 [K]. hashes_K: hashes that the finder has."""
    numbers_K = np.empty(len(hashes_K), np.int32)
    for starts, which in finder.search(hashes_K):
        numbers_K[starts] = which
    return numbers_K


class _Windows:
    """Windows of the candidates, and in how many documents of the domain they occur.

    owner_K, which_K: candidate of each window, and its number among the distinct windows. finder_P, found_P: candidate and distinct
    window, such as a short document inside a longer one. documents_U: number of documents. boilerplate_U, boilerplate_T: True for
    boilerplate windows, and for the tokens in them. own_K: True for windows without such a token.
    """

    def __init__(
        self,
        candidates: Sequence[np.ndarray],
        finder: Finder,
        others: Iterable[tuple[np.ndarray, np.ndarray]],
        boilerplate: int,
    ) -> None:
        self._sizes_C = np.array([len(ids) - 1 for ids in candidates], np.int64)
        # arrays of millions of windows: 4 bytes each where they do, and none longer than it is needed
        own = ((owners, starts, _numbers(finder, hashes)) for owners, starts, hashes in _own_windows(candidates))
        self._owner_K, start_K, self._which_K = map(
            np.concatenate, zip((np.empty(0, np.int32),) * 3, *own, strict=True)
        )
        end_K = start_K + np.minimum(self._sizes_C, WINDOW).astype(np.int32)[self._owner_K]
        finders, windows = zip((np.empty(0, np.int32),) * 2, *finder.find(candidates), strict=True)
        self._finder_P, self._found_P = np.concatenate(finders), np.concatenate(windows)
        self.documents_U = np.bincount(self._found_P, minlength=len(finder.hashes_U))
        for which, counts in others:
            self.documents_U[which] += counts
        self.boilerplate_U = self.documents_U > boilerplate
        common_K = self.boilerplate_U[self._which_K]
        tokens = int(self._sizes_C.sum())
        begins_T, ends_T = (np.bincount(at_K[common_K], minlength=tokens + 1) for at_K in (start_K, end_K))
        self._boilerplate_T = np.cumsum(begins_T - ends_T)[:-1] > 0
        before_T = np.concatenate([[0], np.cumsum(self._boilerplate_T, dtype=np.int32)])
        self._own_K = before_T[end_K] == before_T[start_K]

    def overlaps(self) -> np.ndarray:
        """Return the overlap of each candidate with all other documents, [C]; 1 for one without windows of its own."""
        own_K = self._own_K
        found_C, own_C, windows_C = (
            np.bincount(self._owner_K, counted_K, len(self._sizes_C))
            for counted_K in (own_K & (self.documents_U[self._which_K] > 1), own_K, np.ones(len(own_K)))
        )
        return np.where(own_C > 0, found_C / np.maximum(windows_C, 1), 1.0)

    def boilerplate(self) -> np.ndarray:
        """Return the fraction of each candidate's windows that are boilerplate, [C]."""
        windows_C, common_C = (
            np.bincount(self._owner_K, counted_K, len(self._sizes_C))
            for counted_K in (None, self.boilerplate_U[self._which_K])
        )
        return common_C / np.maximum(windows_C, 1)

    def in_training(self, held_out: Sequence[int]) -> tuple[int, float, float]:
        """Return the number of windows of these candidates, their overlap with documents that are not held out, and the fraction of
        their tokens that is boilerplate."""
        chosen_C = np.isin(np.arange(len(self._sizes_C)), held_out)
        held_out_U = np.bincount(self._found_P[chosen_C[self._finder_P]], minlength=len(self.documents_U))
        chosen_K = chosen_C[self._owner_K]
        count = int(chosen_K.sum())
        standing = (self.documents_U > held_out_U)[self._which_K[chosen_K & self._own_K]].sum()
        common_T = self._boilerplate_T[np.repeat(chosen_C, self._sizes_C)]
        return count, float(standing / max(1, count)), float(common_T.sum() / max(1, len(common_T)))


class _Text:
    """Several documents end to end, without their <eot>."""

    def __init__(self, documents: Sequence[np.ndarray]) -> None:
        self._lengths = np.array([len(ids) - 1 for ids in documents])
        self._ends = np.cumsum(self._lengths)
        self._ids_T = np.concatenate([ids[:-1] for ids in documents])
        self._left_T = np.repeat(self._ends, self._lengths) - np.arange(len(self._ids_T))

    def hashes(self, lengths: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each length with the rolling hash of the `length` tokens from every position on, uint64 [T - length + 1].

        It is the polynomial in _FACTOR that has the tokens as coefficients, the last one of degree 0. _FACTOR is odd and so has an
        inverse modulo 2^64: the cumulative sum of token T times _FACTOR^-T gives all windows of all lengths.
        """
        count = len(self._ids_T)
        powers_T, inverse_T = _powers(max(1, count - 1).bit_length())
        sums_T = np.zeros(count + 1, np.uint64)
        np.cumsum(_mixed(self._ids_T) * inverse_T[:count], out=sums_T[1:])
        for length in lengths:
            if length <= count:
                yield length, (sums_T[length:] - sums_T[: count - length + 1]) * powers_T[length - 1 : count]

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
    first, size, group = 0, 0, list[np.ndarray]()
    for ids in documents:
        group.append(ids)
        size += len(ids)
        if size >= _CHUNK:
            yield first, _Text(group)
            first, size, group = first + len(group), 0, []
    if group:
        yield first, _Text(group)


@functools.lru_cache(maxsize=4)
def _powers(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return _FACTOR^T and _FACTOR^-T modulo 2^64 for T < 2^bits, uint64 [T]."""
    powers = []
    for factor in (int(_FACTOR), pow(int(_FACTOR), -1, 1 << 64)):
        powers_T = np.full(1 << bits, factor, np.uint64)
        powers_T[0] = 1
        powers.append(np.cumprod(powers_T))
    return powers[0], powers[1]


def _mixed(ids_T: np.ndarray) -> np.ndarray:
    """Hash each id to 64 bits (the finaliser of splitmix64)."""
    mixed_T = ids_T.astype(np.uint64) * _FACTOR + _FACTOR
    mixed_T = (mixed_T ^ (mixed_T >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed_T = (mixed_T ^ (mixed_T >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed_T ^ (mixed_T >> np.uint64(31))
