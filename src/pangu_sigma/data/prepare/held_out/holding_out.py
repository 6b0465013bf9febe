"""Passes `windows`, `overlap` and `choose`: candidates of each domain → which of them are held out.

A domain's candidates are in memory, with their windows of tokens, and of the other documents the number in which each window
occurs, a sum over blocks.

Shape suffix: N documents.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from pangu_sigma.data.prepare.blocks import Work
from pangu_sigma.data.prepare.encoding import Encoded, ids_of
from pangu_sigma.data.prepare.held_out.overlap import Finder, HeldOutChoice, HeldOutSize, choose_held_out, finder_of
from pangu_sigma.data.prepare.selection import Selection
from pangu_sigma.data.prepare.stages.stage import Stage, UnitResults

_PARTS = 64
"""Number of parts, at most, in which the overlap of a domain is counted: one process adds them up, and all cores have enough."""


@dataclass(frozen=True)
class DomainItem:
    """Domain by its index. encoded: results of the pass `encode`. overlap: those of `overlap`, of this domain from `first` on to
    `end`. more_text: advice on how to have more text of it."""

    domain: int
    encoded: UnitResults
    overlap: UnitResults | None = None
    first: int = 0
    end: int = 0
    more_text: str = ""


@dataclass(frozen=True)
class OverlapItem:
    """Domain, and the numbers of some blocks that have documents of it."""

    domain: int
    numbers: Sequence[int]
    encoded: UnitResults


@dataclass(frozen=True)
class HeldOutDocuments:
    """Documents to hold out of a domain: their positions among the documents of all blocks, ascending, and how they were chosen."""

    at_N: np.ndarray
    choice: HeldOutChoice


def _candidates(work: Work, item: DomainItem) -> list[np.ndarray]:
    """Return the token ids of a domain's candidates, first choice first."""
    selection: Selection = work.stage.load("selection")
    at_N = selection.candidates[item.domain].at_N
    block_N = selection.blocks_of(at_N)
    found = dict[int, np.ndarray]()
    for number in np.unique(block_N).tolist():
        encoded: Encoded = item.encoded[number]
        documents = encoded.documents[item.domain]
        for document in documents[np.isin(documents["at"], at_N)]:
            found[int(document["at"])] = ids_of(work.stage, encoded.name, document)
    return [found[at] for at in at_N.tolist()]


def find_windows(work: Work, name: str, item: DomainItem) -> None:
    """Write the windows of a domain's candidates, for the pass `overlap`."""
    finder = finder_of(_candidates(work, item))
    work.stage.save(f"windows/of.{item.domain}", (finder.hashes_U, finder.lengths))


@functools.lru_cache(maxsize=1)
def _finder(stage: Stage, domain: int) -> Finder:
    """Load the windows of a domain; they may be large, and items come domain by domain."""
    return Finder(*stage.load(f"windows/of.{domain}"))


def overlap_items(encoded: UnitResults, domains: int) -> list[list[OverlapItem]]:
    """Return the items of the pass `overlap` of each domain."""
    numbers: list[list[int]] = [[] for _ in range(domains)]
    for number, block in enumerate(encoded):
        for domain, documents in enumerate(block.documents):
            if len(documents):
                numbers[domain].append(number)
    at_once = -(-len(encoded) // _PARTS)
    return [
        [OverlapItem(domain, some[n : n + at_once], encoded) for n in range(0, len(some), at_once)]
        for domain, some in enumerate(numbers)
    ]


def count_overlap(work: Work, name: str, item: OverlapItem) -> tuple[np.ndarray, np.ndarray]:
    """Count in how many of some blocks' documents of a domain that are no candidates each window occurs, as `Finder.count`."""
    candidates_N = work.stage.load("selection").candidates[item.domain].at_N

    def others() -> Iterator[np.ndarray]:
        for number in item.numbers:
            encoded: Encoded = item.encoded[number]
            is_other = ~np.isin(encoded.documents[item.domain]["at"], candidates_N)
            yield from compress(encoded.ids(work.stage, item.domain), is_other)

    return _finder(work.stage, item.domain).count(others())


def choose(work: Work, name: str, item: DomainItem) -> HeldOutDocuments:
    """Choose the documents of a domain to hold out."""
    candidates = work.stage.load("selection").candidates[item.domain]
    data = work.config.data_of(item.domain)
    demand = HeldOutSize(
        documents=candidates.wanted,
        tokens=data.min_held_out_tokens,
        most=data.max_held_out_tokens,
        sample=work.config.model.seq_length + 1,
        limit=data.max_overlap,
        boilerplate=data.boilerplate_documents,
        max_boilerplate=data.max_boilerplate,
        more=item.more_text,
    )
    assert item.overlap is not None, "the pass `overlap` comes first"
    others = map(item.overlap.__getitem__, range(item.first, item.end))
    finder = _finder(work.stage, item.domain)
    choice = choose_held_out(_candidates(work, item), finder, others, demand, f"domains.{item.domain}")
    return HeldOutDocuments(np.sort(candidates.at_N[choice.numbers]), choice)
