"""Near-duplicates: documents that have most of their word n-grams in common, found by MinHash (Broder 1997) with datasketch.

    document → signature [P] → hashes of bands → pairs of one hash → pairs of enough equal values → groups → first of each stays

Values of two signatures are equal as often as the Jaccard similarity of their sets of n-grams. A signature is cut into bands; only
documents with an equal band are compared. They are near-duplicates from so many equal values on that a pair at the threshold is
found with a probability of 0.95 or more. So a pair a little below it may be taken, too (two standard deviations: 0.73 for 0.8), an
unrelated one never.

Groups are connected by pairs. Of each group the first document in the order of the input stays, whatever its domain, so copies in
another domain are lost by the domain that comes later. The result depends on the signatures and their order alone, not on memory
or blocks. Disk: 900 bytes a document at the threshold 0.8, beside the signatures. Memory: `memory`, and 8 bytes a document.

Shape suffixes: N documents, P values of a signature, R documents with a band in common with another, K pairs.
"""

from __future__ import annotations

import functools
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pangu_sigma.bars import Bar
from pangu_sigma.data.prepare.cleaning.shingles import mixed, shingles
from pangu_sigma.text.documents import Document

if TYPE_CHECKING:
    from datasketch import MinHash

PERMUTATIONS = 128
"""P, number of values of a signature: the similarity of a pair is estimated to ± 0.04."""

GRAM_WORDS = 5
"""Number of words of an n-gram (our choice, as in datatrove's and NeMo's defaults)."""

_BATCH = 2_048
"""Shingles permuted at a time: the products fit in the CPU cache."""
_FOUND_BY_BANDS = 0.99
"""Least probability that a pair at the threshold has a band in common."""
_DEVIATIONS = 2
"""Standard deviations of the estimate by which a pair may stay below the threshold."""
_NEIGHBOURS = 64
"""Documents of one band that are compared with each one, besides the first: it bounds the work for templates of millions."""
_RECORD_BYTES, _PAIR_BYTES = 64, 1 << 13
"""Memory for a document of a sorted band, and for a compared pair with the two pages of its signatures."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Bands(NamedTuple):
    """Division of a signature into bands. equal: least number of equal values of a pair of near-duplicates."""

    number: int
    rows: int
    equal: int


@dataclass(frozen=True)
class NearDuplicates:
    """Result of a search. Documents are numbered through all blocks.

    first_N: int64, the document that stays in place of each, itself if it stays; a mapped file, so pass on what is needed.
    begins: number of each block's first document, and of all. pairs: pairs that were compared, once for each band in common.
    passed_over: pairs in large bands that were not. groups: number of groups.
    """

    first_N: np.ndarray
    begins: list[int]
    pairs: int
    passed_over: int
    groups: int

    def drops(self, block: int) -> np.ndarray:
        """Return for each document of a block whether it is a near-duplicate of an earlier one, bool [documents]."""
        begin, end = self.begins[block : block + 2]
        return np.asarray(self.first_N[begin:end] != np.arange(begin, end))

    def examples(self, count: int) -> list[tuple[int, int]]:
        """Return the first pairs of a document that stays and one that is dropped for it, of different groups, at most `count`."""
        found: dict[int, int] = {}
        for begin, end in zip(self.begins, self.begins[1:], strict=False):
            first = self.first_N[begin:end]
            for number in np.flatnonzero(first != np.arange(begin, end)).tolist():
                if len(found) == count:
                    return list(found.items())
                found.setdefault(int(first[number]), begin + number)
        return list(found.items())

    def dropped(self, domain_N: np.ndarray) -> Counter[tuple[int, int]]:
        """Count the dropped documents by the domain that loses one and that of the one that stays. domain_N: index of each."""
        counts: Counter[tuple[int, int]] = Counter()
        for begin, end in zip(self.begins, self.begins[1:], strict=False):
            first = self.first_N[begin:end]
            lost = np.flatnonzero(first != np.arange(begin, end))
            counts.update(zip(domain_N[begin + lost].tolist(), domain_N[first[lost]].tolist(), strict=True))
        return counts


def signature(document: Document, permutations: int = PERMUTATIONS, size: int = GRAM_WORDS) -> np.ndarray:
    """Return the MinHash signature of a document's n-grams of `size` words, uint32 [P]. It depends on the text alone.

    Sides of a bilingual document are one text, in their order. Raises DataError if jieba's C++ code cannot be compiled.
    """
    sketch = _empty(permutations).copy()
    for hashes in shingles("\n".join(text for _, text in document.segments), size):
        for first in range(0, len(hashes), _BATCH):
            sketch.update_batch([hashes[first : first + _BATCH]])
    return sketch.hashvalues


@functools.cache
def _empty(permutations: int) -> MinHash:
    from datasketch import MinHash  # with SciPy, which takes every worker half a second

    return MinHash(permutations, hashfunc=_hashed)


def _hashed(hashes: np.ndarray) -> np.ndarray:
    """Return hashes as they are: datasketch then takes an array of them for one value, without a Python integer for each."""
    return hashes


def bands_of(threshold: float, permutations: int = PERMUTATIONS) -> Bands:
    """Return the division into as many rows a band as find a pair at the threshold with a probability of 0.99."""
    rows = max(
        rows
        for rows in range(1, permutations + 1)
        if rows == 1 or 1 - (1 - threshold**rows) ** (permutations // rows) >= _FOUND_BY_BANDS
    )
    deviation = math.sqrt(threshold * (1 - threshold) / permutations)
    return Bands(permutations // rows, rows, math.ceil(permutations * (threshold - _DEVIATIONS * deviation)))


def near_duplicates(
    signatures: Sequence[Path], threshold: float, folder: Path, memory: int = 1 << 28
) -> NearDuplicates:
    """Find the near-duplicates among documents.

    signatures: files (.npy, uint32 [documents, P]) of blocks of documents, in the order of the input. threshold: the Jaccard
    similarity from which documents are near-duplicates. folder: an existing one, for files; `first` stays there, which the result
    maps, and what an earlier call left is replaced. memory: bytes. Raises OSError if the disk is full.
    """
    begins = [0]
    for file in signatures:
        begins.append(begins[-1] + len(np.load(file, mmap_mode="r")))
    bands = bands_of(threshold, np.load(signatures[0], mmap_mode="r").shape[1]) if signatures else bands_of(threshold)
    first_N = _numbers(folder / "first", begins[-1])
    search = _Search(folder, bands, first_N, memory)
    search.write(signatures)
    for band in Bar(range(bands.number), desc="finding near-duplicates", unit="band"):
        search.examine(band)
    return NearDuplicates(first_N, begins, search.pairs, search.passed_over, search.close())


def _numbers(file: Path, count: int) -> np.ndarray:
    """Create a mapped file of the numbers 0 … count - 1, int64. Raises OSError if the disk is full."""
    if not count:
        return np.empty(0, np.int64)  # an empty file cannot be mapped
    with file.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, 8 * count)  # a full disk would end the process when it writes to the map
    numbers = np.memmap(file, np.int64, "r+", shape=(count,))
    for begin in range(0, count, 1 << 20):
        end = min(begin + (1 << 20), count)
        numbers[begin:end] = np.arange(begin, end)
    return numbers


class _Search:
    """Search for pairs, with its files: `signatures`, all of them end to end, and for each band the hashes of all documents,
    uint64."""

    def __init__(self, folder: Path, bands: Bands, first_N: np.ndarray, memory: int) -> None:
        self._folder, self._bands, self._first_N, self._memory = folder, bands, first_N, memory
        self._permutations = 0
        self.pairs = self.passed_over = 0

    def _band(self, band: int) -> Path:
        return self._folder / f"band.{band:03}"

    def write(self, signatures: Sequence[Path]) -> None:
        """Write all files."""
        bands = [self._band(band).open("wb") for band in range(self._bands.number)]
        with (self._folder / "signatures").open("wb") as all_of_them:
            for file in signatures:
                values_NP = np.load(file, mmap_mode="r")
                self._permutations = values_NP.shape[1]
                step = max(1, self._memory // (8 * self._permutations))
                for first in range(0, len(values_NP), step):
                    some = np.ascontiguousarray(values_NP[first : first + step])
                    some.tofile(all_of_them)
                    for band, stream in enumerate(bands):
                        _band_hashes(some, band, self._bands.rows).tofile(stream)
        for stream in bands:
            stream.close()

    def examine(self, band: int) -> None:
        """Connect the near-duplicates that have a band in common."""
        portions = -(-len(self._first_N) * _RECORD_BYTES // self._memory)
        for portion in range(portions):
            hashes, numbers = self._records(band, portion, portions)
            for a_K, b_K in self._candidates(hashes, numbers):
                self._compare(a_K, b_K)
        self._band(band).unlink()

    def _records(self, band: int, portion: int, portions: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the hashes [R] of a band that are `portion` modulo `portions`, sorted, without unique ones, and documents."""
        hashes, numbers = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        step, first = max(1, self._memory // _RECORD_BYTES), 0
        with self._band(band).open("rb") as file:
            while len(some := np.fromfile(file, np.uint64, step)):
                chosen = np.flatnonzero(some % np.uint64(portions) == portion)
                hashes.append(some[chosen])
                numbers.append(first + chosen)
                first += len(some)
        together = np.concatenate(hashes)
        order = np.argsort(together, kind="stable")
        together = together[order]
        again = together[1:] == together[:-1]
        several = np.append(again, False) | np.insert(again, 0, False) if len(together) else np.empty(0, bool)
        return together[several], np.concatenate(numbers)[order[several]]

    def _candidates(self, hashes_R: np.ndarray, numbers_R: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield pairs of documents with equal hashes: each with the first, then with the next ones, nearest first."""
        _, begin, size = np.unique(hashes_R, return_index=True, return_counts=True)
        begin_R, end_R = np.repeat(begin, size), np.repeat(begin + size, size)
        index_R = np.arange(len(hashes_R))
        later = index_R > begin_R
        self.passed_over += int(
            np.sum(np.maximum(size - 2 - _NEIGHBOURS, 0) * np.maximum(size - 1 - _NEIGHBOURS, 0)) // 2
        )
        yield numbers_R[begin_R[later]], numbers_R[later]
        for distance in range(1, _NEIGHBOURS + 1):
            index_R = index_R[index_R + distance < end_R[index_R]]
            if not len(index_R):
                return
            other_R = index_R[index_R > begin_R[index_R]]  # the first one was compared with all
            yield numbers_R[other_R], numbers_R[other_R + distance]

    def _compare(self, a_K: np.ndarray, b_K: np.ndarray) -> None:
        """Connect the pairs that have enough equal values."""
        self.pairs += len(a_K)
        step = max(1_024, self._memory // _PAIR_BYTES)
        for first in range(0, len(a_K), step):
            a, b = a_K[first : first + step], b_K[first : first + step]
            unconnected = _roots(self._first_N, a) != _roots(self._first_N, b)
            a, b = a[unconnected], b[unconnected]
            # mapped anew each time, so that pages of earlier pairs are no longer this process's
            values_NP = np.memmap(self._folder / "signatures", np.uint32, "r").reshape(-1, self._permutations)
            near = np.count_nonzero(values_NP[a] == values_NP[b], axis=1) >= self._bands.equal
            _connect(self._first_N, a[near], b[near])

    def close(self) -> int:
        """Let every document name the first of its group, remove the files, and return the number of groups."""
        later = np.zeros(len(self._first_N), bool)
        for begin in range(0, len(self._first_N), 1 << 20):
            numbers = np.arange(begin, min(begin + (1 << 20), len(self._first_N)))
            roots = self._first_N[numbers] = _roots(self._first_N, numbers)
            later[roots[roots != numbers]] = True
        (self._folder / "signatures").unlink()
        return int(later.sum())


def _band_hashes(values_NP: np.ndarray, band: int, rows: int) -> np.ndarray:
    """Return the hash of a band of each signature, uint64 [N]."""
    hashes = np.zeros(len(values_NP), np.uint64)
    for column in range(band * rows, (band + 1) * rows):
        hashes = mixed(hashes + values_NP[:, column] + _FACTOR)
    return hashes


def _roots(first_N: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the first document of the groups of documents, and shorten their ways to it."""
    roots = first_N[numbers]
    while np.any((above := first_N[roots]) != roots):
        first_N[numbers] = above
        roots = first_N[above]
    return roots


def _connect(first_N: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """Make one group of the groups of each pair."""
    while True:
        a, b = _roots(first_N, a), _roots(first_N, b)
        different = a != b
        if not different.any():
            return
        a, b = a[different], b[different]
        np.minimum.at(first_N, np.maximum(a, b), np.minimum(a, b))
