"""What happens to each document when it is read: quality filters drop it or let it pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pangu_sigma.config import Config
from pangu_sigma.data.prepare.cleaning.filters import Filters
from pangu_sigma.domains import Domains, domains_of
from pangu_sigma.text.documents import Document, Rejected

_SAMPLES, _SHOWN = 5, 200
"""Number of documents that are quarantined as samples of a filter in one unit of the input, and characters of each."""


class Sample(Rejected):
    """Document that a filter dropped, one of a few that are shown; all are counted in `Sifted`."""


@dataclass(frozen=True)
class Sifted:
    """Counts of a unit. dropped: documents by domain index and filter. dropped_bytes: UTF-8 bytes of them by domain."""

    dropped: Counter[tuple[int, str]] = field(default_factory=Counter)
    dropped_bytes: Counter[int] = field(default_factory=Counter)

    def of(self, domain: int) -> tuple[dict[str, int], int]:
        """Return the number of dropped documents of a domain by filter, and their bytes."""
        by_filter = {name: count for (index, name), count in sorted(self.dropped.items()) if index == domain}
        return by_filter, self.dropped_bytes[domain]

    def __add__(self, other: Sifted) -> Sifted:
        return Sifted(self.dropped + other.dropped, self.dropped_bytes + other.dropped_bytes)


class Sieve:
    """Sieve of one unit of the input. sifted: its counts so far."""

    def __init__(self, config: Config) -> None:
        self._filters = Filters.of(config)
        self._domains: Domains = domains_of(config)
        self.sifted = Sifted()

    def sift(self, items: Iterable[Document | Rejected]) -> Iterator[Document | Rejected]:
        """Yield the items without the documents that filters drop, and a few of those as a `Sample`."""
        sifted = self.sifted
        for item in items:
            if isinstance(item, Document):
                domain = self._domains.named(item.domain)
                if (rule := self._filters.reason(item, domain)) is not None:
                    sifted.dropped[domain.index, rule] += 1
                    sifted.dropped_bytes[domain.index] += item.bytes
                    if sifted.dropped[domain.index, rule] <= _SAMPLES:
                        yield _sample(item, rule)
                    continue
            yield item


def _sample(document: Document, rule: str) -> Sample:
    file, _, offset = document.origin.rpartition(":")
    text = " ".join(text for _, text in document.segments)
    at = int(offset) if offset.isdecimal() else 0
    return Sample(file, None, at, f"filter {rule}", text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
