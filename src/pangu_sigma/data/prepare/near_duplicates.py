"""Near-duplicates: documents that have most of their word n-grams in common, found by MinHash (Broder 1997) with datasketch.

document → signature [P] → bands → pairs of an equal band → pairs of enough equal values → groups → first of each stays

Values of two signatures are equal as often as the Jaccard similarity of their sets of n-grams. A signature is cut into bands. Of
the documents with an equal band, each is compared with the first one and with the one before it: the work grows with the number of
documents, however many share a template. A pair with enough equal values is near-duplicate: a pair at the threshold with a
probability of 0.95 or more, a pair two standard deviations below it (0.73 for 0.8) perhaps, an unrelated pair never.

Groups are connected by pairs. Of each group the first document in the order of the input stays, and later domains lose their
copies. The result depends on the signatures and their order alone.

Shape suffixes: P values of a signature, R documents in a pair, K pairs, W words, S n-grams.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xxhash
from duckdb import DuckDBPyConnection

from pangu_sigma.data.prepare.stage import tables_of
from pangu_sigma.text.documents import Document
from pangu_sigma.text.segmentation import HAN
from pangu_sigma.text.words import NEWLINE, SPACE, words

if TYPE_CHECKING:
    from datasketch import MinHash

PERMUTATIONS = 128
"""P, number of values of a signature: the similarity of a pair is estimated to ± 0.04."""

GRAM_WORDS = 5
"""Number of words of an n-gram (our choice, as in datatrove's and NeMo's defaults)."""

_HAN = re.compile(f"[{HAN}]")
_WORD = re.compile(r"[^\W_]+|[^\s\w]|_")
_SLICE = 1 << 16
"""Characters whose words are objects at a time. It bounds the memory of a long text, at a few n-grams that the cuts lose."""
_FACTOR = np.uint64(0xC2B2AE3D27D4EB4F)
_BATCH = 2_048
"""N-grams permuted at a time: the products fit in the CPU cache."""
_FOUND_BY_BANDS = 0.99
"""Least probability that a pair at the threshold has a band in common."""
_DEVIATIONS = 2
"""Standard deviations of the estimate by which a pair may stay below the threshold."""
_PAIRS = """
    WITH cut AS (
        SELECT document, band, signature[band * $size + 1 : (band + 1) * $size] AS part FROM documents, range($number) bands(band)
        WHERE domain IS NOT NULL
    ), shared AS (
        SELECT document AS b, min(document) OVER same AS first, lag(document) OVER same AS before FROM cut
        WINDOW same AS (PARTITION BY band, part ORDER BY document)
    ), pairs AS (SELECT DISTINCT unnest([first, before]) AS a, b FROM shared WHERE before IS NOT NULL)
    SELECT a, b, one.signature AS one, other.signature AS other FROM pairs
    JOIN documents one ON a = one.document JOIN documents other ON b = other.document ORDER BY a, b
"""
"""Pairs of documents with an equal band: each with the first one and with the one before it."""


class Bands(NamedTuple):
    """Division of a signature into bands. equal: least number of equal values of a pair of near-duplicates."""

    number: int
    rows: int
    equal: int


@dataclass(frozen=True)
class NearDuplicates:
    """Result of a search. dropped: near-duplicates of earlier documents, ascending. first: document that stays in place of each
    dropped one. pairs: number of pairs that were compared. groups: number of groups."""

    dropped: np.ndarray
    first: np.ndarray
    pairs: int
    groups: int


def signature(document: Document, permutations: int = PERMUTATIONS, size: int = GRAM_WORDS) -> np.ndarray:
    """Return the MinHash signature of a document's n-grams of `size` words, uint32 [P], P permutations. It depends on the text
    alone; the sides of a bilingual document are one text. Raises DataError if jieba's C++ code cannot be compiled."""
    sketch = _empty_sketch(permutations).copy()
    for hashes in shingles("\n".join(text for _, text in document.segments), size):
        for first in range(0, len(hashes), _BATCH):
            # one "value" that is an array of hashes, as `_empty_sketch` has it; a batch bounds the memory
            sketch.update_batch([hashes[first : first + _BATCH]])
    return sketch.hashvalues


def shingles(text: str, size: int) -> Iterator[np.ndarray]:
    """Yield arrays with the hashes of a text's n-grams of `size` words, uint32 [S]. Text of fewer words is one n-gram.

    Words are jieba's in text with Han characters, and runs of letters and digits elsewhere; every other visible character is a
    word. Case, blanks and full-width forms do not count. Text is cut every 65,536 characters, and n-grams end at the cuts. Raises
    DataError if jieba's C++ code cannot be compiled."""
    for first in range(0, len(text), _SLICE):
        part = text[first : first + _SLICE]
        if _HAN.search(part):
            part = words(part).replace(SPACE, " ").replace(NEWLINE, " ")
        part_words = _WORD.findall(unicodedata.normalize("NFKC", part).lower())
        hashes_W = np.fromiter((xxhash.xxh64_intdigest(word.encode()) for word in part_words), np.uint64)
        if len(hashes_W):
            length = min(size, len(hashes_W))
            hashes_S = np.zeros(len(hashes_W) - length + 1, np.uint64)
            for n in range(length):  # a polynomial in _FACTOR of the hashes of the words
                hashes_S = hashes_S * _FACTOR + hashes_W[n : n + len(hashes_S)]
            yield (hashes_S >> np.uint64(32)).astype(np.uint32)


@functools.cache
def _empty_sketch(permutations: int) -> MinHash:
    """Return a MinHash without values, whose values are arrays of hashes."""
    from datasketch import MinHash  # imports SciPy, which takes half a second

    # the values are hashes already: datasketch then works on whole arrays, without a Python integer for each hash
    return MinHash(permutations, hashfunc=lambda hashes: hashes)


def bands_of(threshold: float, permutations: int = PERMUTATIONS) -> Bands:
    """Return the division into bands of the most values (rows) with which a pair at the threshold, a Jaccard similarity, has an
    equal band with a probability of at least 0.99, and the least number of equal values of near-duplicates."""
    rows = max(
        rows
        for rows in range(1, permutations + 1)
        if rows == 1 or 1 - (1 - threshold**rows) ** (permutations // rows) >= _FOUND_BY_BANDS
    )
    deviation = math.sqrt(threshold * (1 - threshold) / permutations)
    return Bands(permutations // rows, rows, math.ceil(permutations * (threshold - _DEVIATIONS * deviation)))


def near_duplicates(database: DuckDBPyConnection, bands: Bands) -> NearDuplicates:
    """Find the near-duplicates among documents: pairs with enough equal values connect documents to groups, and the first document
    of a group stays. database: with the table `documents`, which has for each document: document (number in the order of the
    input), domain (null: no document) and signature, the bytes of its values. bands: division of the signatures."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs, near_pairs = 0, [np.empty((2, 0), np.int64)]
    for table in tables_of(database, _PAIRS, {"number": bands.number, "size": 4 * bands.rows}):  # size: bytes of a band
        values_a, values_b = (np.frombuffer(b"".join(table[name].to_pylist()), np.uint32) for name in ("one", "other"))
        equal_KP = (values_a == values_b).reshape(table.num_rows, len(values_a) // max(1, table.num_rows))
        is_near_K = np.count_nonzero(equal_KP, axis=1) >= bands.equal
        near_pairs.append(np.stack([table[name].to_numpy()[is_near_K] for name in "ab"]))
        pairs += table.num_rows
    document_R, index_of_pairs = np.unique(np.concatenate(near_pairs, axis=1), return_inverse=True)
    a, b = index_of_pairs.reshape(2, -1)
    graph = coo_array((np.ones(len(a), bool), (a, b)), (len(document_R),) * 2)
    groups, group_R = connected_components(graph, directed=False)
    _, first_of_group = np.unique(group_R, return_index=True)  # documents are in the order of the input
    first_R = document_R[first_of_group[group_R]]
    is_dropped_R = first_R != document_R
    return NearDuplicates(document_R[is_dropped_R], first_R[is_dropped_R], pairs, groups)
