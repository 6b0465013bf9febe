"""Which documents are kept, and which of them are held out: decided by the content of each document alone.

A document's place is a hash of its text. The documents with the lowest hashes that fit into the limit are kept, which
spreads them over the whole source, drops exact duplicates, does not depend on the order of the input, and needs memory
for the kept documents only.
"""

from __future__ import annotations

import hashlib
import heapq

from pangu_sigma.data.documents import Document


class Selection:
    """Documents of one domain, at most `limit` bytes of UTF-8 of them.

    offered, duplicates, too_long: documents that came in, exact copies of a kept one, longer than `limit` alone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._ceiling = 1 << 256  # places from here on were given up for good
        self._heap: list[
            tuple[int, int, Document]
        ] = []  # (-place, order of arrival, document): the highest place on top
        self._places: set[int] = set()
        self.offered = self.duplicates = self.too_long = 0

    def add(self, document: Document) -> None:
        """Keep the document, unless it is a copy or its place is above what still fits."""
        self.offered += 1
        place = _place("keep", document)
        if place in self._places:
            self.duplicates += 1
        elif document.bytes > self._limit:
            self.too_long += 1
        elif place < self._ceiling:
            self._places.add(place)
            heapq.heappush(self._heap, (-place, self.offered, document))
            self._bytes += document.bytes
            while self._bytes > self._limit:
                self._drop_highest()

    def _drop_highest(self) -> None:
        negative, _, document = heapq.heappop(self._heap)
        self._ceiling = -negative
        self._places.remove(self._ceiling)
        self._bytes -= document.bytes

    def documents(self) -> list[Document]:
        """The kept documents in order of arrival."""
        return [document for _, _, document in sorted(self._heap, key=lambda entry: entry[1])]


def split(documents: list[Document], held_out: float) -> tuple[list[Document], list[Document]]:
    """(train, held out): the share `held_out` with the lowest hashes; at least one on either side (of two or more)."""
    count = min(max(1, round(held_out * len(documents))), len(documents) - 1)
    places = [_place("hold out", document) for document in documents]
    chosen = set(sorted(range(len(documents)), key=places.__getitem__)[:count])
    train = [document for i, document in enumerate(documents) if i not in chosen]
    return train, [document for i, document in enumerate(documents) if i in chosen]


def _place(purpose: str, document: Document) -> int:
    digest = hashlib.sha256(purpose.encode())
    for language, text in document.segments:
        digest.update(f"\0{language}\0".encode())
        digest.update(text.encode())
    return int.from_bytes(digest.digest(), "big")
