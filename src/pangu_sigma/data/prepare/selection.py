"""Selection of documents to keep, and of candidates for the held-out set, by the hash of each document's content.

Exact copies are dropped. If there is a limit, the documents with the lowest hashes are kept, as many as fit. This spreads them over
the whole source, does not depend on the order of the input, and needs memory for the kept documents only.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from pangu_sigma.data.manifest import Source
from pangu_sigma.sections import DataConfig
from pangu_sigma.text.documents import Document

CANDIDATES_PER_DOCUMENT = 5
"""Number of candidates for each held-out document: of the packaged code only a quarter repeat nothing. Candidates do not contribute
to the vocabulary, so that no vocabulary is made from text that it is measured on."""

_BYTES_PER_TOKEN = 4
"""Bytes of UTF-8 of a token, about: in packaged text 2.6 to 4.5."""


class Selection:
    """Selection of the documents of one domain: at most `limit` bytes of UTF-8; None: no limit. sources: those of its text.

    offered: number of documents added. Each is kept or counted in one of: duplicates (exact copies of a kept one), too_long (longer
    than `limit` by itself), over_limit (left out because documents of lower hashes fill the limit).
    offered_bytes, left_out_bytes: UTF-8 bytes of all documents added, and of those too long or over the limit.
    """

    def __init__(self, limit: int | None, sources: Sequence[Source] = ()) -> None:
        self.limit, self.sources = limit, list(sources)
        self._bytes = 0
        self._ceiling = 1 << 256  # hashes from here on were given up for good
        # (-hash, order of arrival, document): the highest hash on top
        self._heap: list[tuple[int, int, Document]] = []
        self._hashes: set[int] = set()
        self.offered = self.duplicates = self.too_long = self.over_limit = 0
        self.offered_bytes = self.left_out_bytes = 0

    def add(self, document: Document) -> None:
        """Keep a document, unless it is a copy or documents of lower hashes fill the limit."""
        self.offered += 1
        size = document.bytes
        self.offered_bytes += size
        key = _hash("keep", document)
        if key in self._hashes:
            self.duplicates += 1
        elif self.limit is not None and size > self.limit:
            self.too_long += 1
            self.left_out_bytes += size
        elif key >= self._ceiling:
            self._leave_out(size)
        else:
            self._hashes.add(key)
            heapq.heappush(self._heap, (-key, self.offered, document))
            self._bytes += size
            while self.limit is not None and self._bytes > self.limit:
                self._drop_highest()

    def _drop_highest(self) -> None:
        negative, _, document = heapq.heappop(self._heap)
        self._ceiling = -negative
        self._hashes.remove(self._ceiling)
        self._bytes -= document.bytes
        self._leave_out(document.bytes)

    def _leave_out(self, size: int) -> None:
        self.over_limit += 1
        self.left_out_bytes += size

    def documents(self) -> list[Document]:
        """Return the kept documents in order of arrival."""
        return [document for _, _, document in sorted(self._heap, key=lambda entry: entry[1])]


@dataclass(frozen=True)
class Candidates:
    """Candidates for the held-out set: the first `count` documents of `order`, which are numbers of documents by their hash.

    wanted: number of documents to hold out. As order is by hash, any stretch of it is a random sample of the documents.
    """

    order: list[int]
    count: int
    wanted: int

    @property
    def numbers(self) -> list[int]:
        """Numbers of the candidates, first choice first."""
        return self.order[: self.count]


def held_out_candidates(documents: Sequence[Document], data: DataConfig, held_out: float) -> Candidates:
    """Choose the candidates for the held-out set of a domain. data: section `data`. held_out: the domain's own fraction.

    The number to hold out is the fraction `held_out` of all, at least one. Candidates are the documents of the lowest hashes,
    `CANDIDATES_PER_DOCUMENT` times the number that `data.held_out` asks for, but not over half of the documents unless more are to
    be held out, and of no more text than data.max_held_out_tokens needs; one is always left to train on. All other documents make
    the vocabulary, so that a domain's own fraction does not change it unless it needs more candidates.
    """
    wanted, usual = (
        max(0, min(max(1, round(f * len(documents))), len(documents) - 1)) for f in (held_out, data.held_out)
    )
    hashes = [_hash("hold out", document) for document in documents]
    order = sorted(range(len(documents)), key=hashes.__getitem__)
    count = max(wanted, min(CANDIDATES_PER_DOCUMENT * usual, len(documents) // 2))
    text = CANDIDATES_PER_DOCUMENT * _BYTES_PER_TOKEN * data.max_held_out_tokens
    within = sum(size <= text for size in accumulate(documents[number].bytes for number in order[:count]))
    return Candidates(order, min(count, max(within, CANDIDATES_PER_DOCUMENT)), wanted)


def _hash(purpose: str, document: Document) -> int:
    digest = hashlib.sha256(purpose.encode())
    for language, text in document.segments:
        digest.update(f"\0{language}\0".encode())
        digest.update(text.encode())
    return int.from_bytes(digest.digest(), "big")
