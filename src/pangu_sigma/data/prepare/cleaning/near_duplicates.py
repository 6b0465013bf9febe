"""Near-duplicates: documents that have most of their word n-grams in common, found by MinHash (Broder 1997) with datasketch.

    document → signature [P] → bands → pairs of an equal band → pairs of enough equal values → groups → first of each stays

Values of two signatures are equal as often as the Jaccard similarity of their sets of n-grams. A signature is cut into bands; only
documents with an equal band are compared. They are near-duplicates from so many equal values on that a pair at the threshold is
found with a probability of 0.95 or more. So a pair a little below it may be taken, too (two standard deviations: 0.73 for 0.8), an
unrelated one never.

Groups are connected by pairs. Of each group the first document in the order of the input stays, whatever its domain, so copies in
another domain are lost by the domain that comes later. The result depends on the signatures and their order alone. Memory: the
database's, and 24 bytes for a document with a band in common with another.

Shape suffixes: P values of a signature, R documents with a band in common with another, K pairs.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from duckdb import DuckDBPyConnection

from pangu_sigma.data.prepare.cleaning.shingles import shingles
from pangu_sigma.data.prepare.stages.stage import tables_of
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

_SHARED = """
    CREATE TEMP TABLE shared AS
    WITH cut AS (
        SELECT document, band, signature[band * $size + 1 : (band + 1) * $size] AS part FROM documents, range($number) bands(band)
        WHERE domain IS NOT NULL
    ), several AS (SELECT band, part FROM cut GROUP BY band, part HAVING count(*) > 1)
    SELECT band, part, document, row_number() OVER (PARTITION BY band, part ORDER BY document) AS place
    FROM cut JOIN several USING (band, part) ORDER BY band, part, document
"""
"""Documents with a band in common with others. place: from 1, among the documents whose band has these values."""
_SIZES = (
    "SELECT size, count(*) FROM (SELECT count(*) AS size FROM shared GROUP BY band, part) GROUP BY size ORDER BY size"
)
_FIRST = """
    SELECT DISTINCT first.document AS a, other.document AS b FROM shared first JOIN shared other USING (band, part)
    WHERE first.place = 1 AND other.place > 1
"""
"""Pairs of the first document of a band with each other one."""
_NEXT = f"""
    WITH open AS (
        SELECT band, part, document, place, root FROM shared JOIN roots USING (document)
        QUALIFY min(root) OVER (PARTITION BY band, part) <> max(root) OVER (PARTITION BY band, part)
    )
    SELECT DISTINCT one.document AS a, other.document AS b
    FROM (SELECT *, unnest(range(1, {_NEIGHBOURS} + 1)) AS distance FROM open WHERE place > 1) one
    JOIN open other ON one.band = other.band AND one.part = other.part AND other.place = one.place + one.distance
    WHERE one.root <> other.root
"""
"""Pairs of the other documents with the next ones, unless what is known connects them."""
_VALUES = """
    SELECT a, b, one.signature AS one, other.signature AS other FROM pairs
    JOIN documents one ON a = one.document JOIN documents other ON b = other.document ORDER BY a, b
"""


class Bands(NamedTuple):
    """Division of a signature into bands. equal: least number of equal values of a pair of near-duplicates."""

    number: int
    rows: int
    equal: int


@dataclass(frozen=True)
class NearDuplicates:
    """Result of a search. dropped: near-duplicates of earlier documents, ascending. first: document that stays in place of each.

    pairs: pairs that have a band in common and were compared, once for each such band. passed_over: such pairs of large bands
    that were not. groups: number of groups.
    """

    dropped: np.ndarray
    first: np.ndarray
    pairs: int
    passed_over: int
    groups: int


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


def near_duplicates(database: DuckDBPyConnection, bands: Bands) -> NearDuplicates:
    """Find the near-duplicates among documents.

    database: with the table `documents`: document (number in the order of the input), domain (null: no document) and signature,
    the bytes of its values.
    """
    database.execute(_SHARED, {"number": bands.number, "size": 4 * bands.rows})
    pairs = passed_over = 0
    for size, count in database.execute(_SIZES).fetchall():
        over = max(size - 2 - _NEIGHBOURS, 0) * max(size - 1 - _NEIGHBOURS, 0) // 2
        passed_over += count * over
        pairs += count * (size * (size - 1) // 2 - over)
    shared = database.sql("SELECT DISTINCT document FROM shared ORDER BY document").to_arrow_table()
    document_R = shared["document"].to_numpy()
    first_R = np.arange(len(document_R))
    for statement in (_FIRST, _NEXT):
        roots_R = document_R[_roots(first_R, np.arange(len(first_R)))]
        database.register("roots", pa.table({"document": document_R, "root": roots_R}))
        database.execute(f"CREATE OR REPLACE TEMP TABLE pairs AS {statement} ORDER BY a, b")
        for table in tables_of(database, _VALUES):
            one, other = (np.frombuffer(b"".join(table[name].to_pylist()), np.uint32) for name in ("one", "other"))
            equal_KP = (one == other).reshape(table.num_rows, len(one) // max(1, table.num_rows))
            near_K = np.count_nonzero(equal_KP, axis=1) >= bands.equal
            _connect(first_R, *(np.searchsorted(document_R, table[name].to_numpy()[near_K]) for name in "ab"))
    roots_R = _roots(first_R, np.arange(len(first_R)))
    dropped_R = roots_R != np.arange(len(roots_R))
    first = document_R[roots_R[dropped_R]]
    return NearDuplicates(document_R[dropped_R], first, pairs, passed_over, len(np.unique(first)))


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
