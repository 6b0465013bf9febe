"""The documents that are kept, and those of them that may be held out: the content of each document alone decides.

Exact copies are dropped. Where there is a limit, the documents whose texts have the lowest hashes are kept, as many as fit. This
spreads them over the whole source, does not depend on the order of the input, and needs memory for the kept documents only.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence

from pangu_sigma.data.documents import Document

CHOICE = 5
"""Documents that may be held out for one that is: of the packaged code a quarter repeat nothing. None of these decides what tokens
there are, so that no vocabulary is made from text that it is measured on."""


class Selection:
    """The kept documents of one domain: at most `limit` bytes of UTF-8; None: all of them.

    offered: number of documents that came in. duplicates: exact copies of a kept one. too_long: longer than `limit` by themselves.
    over_limit: left out because documents of lower hashes fill the limit. What is offered is one of these or is kept.
    offered_bytes, left_out_bytes: UTF-8 of all documents that came in, and of those too long or over the limit.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._bytes = 0
        self._ceiling = 1 << 256  # hashes from here on were given up for good
        # (-hash, order of arrival, document): the highest hash on top
        self._heap: list[tuple[int, int, Document]] = []
        self._hashes: set[int] = set()
        self.offered = self.duplicates = self.too_long = self.over_limit = 0
        self.offered_bytes = self.left_out_bytes = 0

    def add(self, document: Document) -> None:
        """Keep the document, unless it is a copy or its hash is above what still fits."""
        self.offered += 1
        size = document.bytes
        self.offered_bytes += size
        key = _hash("keep", document)
        if key in self._hashes:
            self.duplicates += 1
        elif self._limit is not None and size > self._limit:
            self.too_long += 1
            self.left_out_bytes += size
        elif key >= self._ceiling:
            self._leave_out(size)
        else:
            self._hashes.add(key)
            heapq.heappush(self._heap, (-key, self.offered, document))
            self._bytes += size
            while self._limit is not None and self._bytes > self._limit:
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
        """The kept documents in order of arrival."""
        return [document for _, _, document in sorted(self._heap, key=lambda entry: entry[1])]


def held_out_candidates(documents: Sequence[Document], held_out: float) -> tuple[list[int], int]:
    """Numbers of the documents that may be held out, first choice first, and how many of them are wanted.

    Wanted is the fraction `held_out` of all, at least one. Those of the lowest hashes may be held out, `CHOICE` times as many as
    are wanted, but not over half of the documents unless more are wanted. Of two documents or more one is not among them.
    """
    wanted = min(max(1, round(held_out * len(documents))), len(documents) - 1)
    hashes = [_hash("hold out", document) for document in documents]
    order = sorted(range(len(documents)), key=hashes.__getitem__)
    return order[: max(wanted, min(CHOICE * wanted, len(documents) // 2))], wanted


def _hash(purpose: str, document: Document) -> int:
    digest = hashlib.sha256(purpose.encode())
    for language, text in document.segments:
        digest.update(f"\0{language}\0".encode())
        digest.update(text.encode())
    return int.from_bytes(digest.digest(), "big")
