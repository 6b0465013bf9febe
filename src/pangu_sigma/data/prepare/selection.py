"""Selection of documents to keep, and of candidates for the held-out set, by the hash of each document's content.

Exact copies are dropped, and near-duplicates if the configuration says so. If there is a limit, the documents with the lowest
hashes are kept, as many as fit. This spreads them over the whole source, and does not depend on the order of the input. The
selection reads the indexes of all blocks part by part, in the order of the hashes, so that its memory is that of one part, and of a
byte a document.

Shape suffix: N documents of some domain or part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from pangu_sigma.data.manifest import NearDuplicatesRecord
from pangu_sigma.data.prepare.blocks import INDEX, Block, Work, index_parts, starts
from pangu_sigma.data.prepare.cleaning.near_duplicates import NearDuplicates, near_duplicates
from pangu_sigma.data.prepare.stages.stage import Stage, read_frame, read_frames, write_frame
from pangu_sigma.sections import DataConfig

CANDIDATES_PER_DOCUMENT = 5
"""Number of candidates for each held-out document: of the packaged code only a quarter repeat nothing. Candidates do not contribute
to the vocabulary, so that no vocabulary is made from text that it is measured on."""

_BYTES_PER_TOKEN = 4
"""Bytes of UTF-8 of a token, about: in packaged text 2.6 to 4.5."""

_EXAMPLES, _SHOWN = 3, 200
"""Number of pairs of near-duplicates that are shown, and characters of each text."""

_PLACED = np.dtype([("at", "<i8"), *((name, INDEX[name]) for name in ("hold_high", "hold_low", "bytes"))])
"""Kept document. at: position among the documents of all blocks. hold, bytes: as in INDEX."""


@dataclass
class Kept:
    """Counts of a domain. limit: maximum bytes kept; None for all.

    offered: number of documents read. Each is kept or counted in one of: duplicates (copies of an earlier one),
    near_duplicates (of an earlier one of any domain), too_long (longer than `limit` by itself), over_limit (left out because
    documents of lower hashes fill the limit). offered_bytes, left_out_bytes: UTF-8 bytes of all of them, and of those too long or
    over the limit.
    """

    limit: int | None
    offered: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    too_long: int = 0
    over_limit: int = 0
    offered_bytes: int = 0
    left_out_bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0

    def keep(self, records_N: np.ndarray, near_N: np.ndarray | None = None) -> np.ndarray:
        """Count documents whose hashes follow on those before, and return those to keep.

        records_N: INDEX, by hash and order. near_N: True for near-duplicates of other documents; None: there are none.
        """
        near_N = np.zeros(len(records_N), bool) if near_N is None else near_N
        self.offered += len(records_N)
        self.offered_bytes += int(records_N["bytes"].sum(dtype=np.int64))
        if self.limit is not None:
            long_N = records_N["bytes"] > self.limit
            self.too_long += int(long_N.sum())
            self.left_out_bytes += int(records_N["bytes"][long_N].sum(dtype=np.int64))
            records_N, near_N = records_N[~long_N], near_N[~long_N]
        differ_N = [np.diff(records_N[key]) != 0 for key in ("key_high", "key_low")]
        first_N = np.append(True, differ_N[0] | differ_N[1])[: len(records_N)]
        self.duplicates += int((~first_N).sum())
        self.near_duplicates += int(near_N[first_N].sum())
        records_N = records_N[first_N & ~near_N]
        ends_N = self.kept_bytes + np.cumsum(records_N["bytes"], dtype=np.int64)
        fitting = len(ends_N)
        if self.limit is not None:
            fitting = 0 if self.over_limit else int(np.searchsorted(ends_N, self.limit, side="right"))
            self.over_limit += len(ends_N) - fitting
            self.left_out_bytes += int(records_N["bytes"][fitting:].sum(dtype=np.int64))
        self.kept += fitting
        self.kept_bytes = int(ends_N[fitting - 1]) if fitting else self.kept_bytes
        return records_N[:fitting]


@dataclass(frozen=True)
class Candidates:
    """Candidates for the held-out set, first choice first. at_N: positions among the documents of all blocks, int64.

    wanted: number of documents to hold out.
    """

    at_N: np.ndarray
    wanted: int


@dataclass(frozen=True)
class Selection:
    """Selection of documents. domains: counts of each. candidates: of each. starts: position of each block's first document.

    offsets: of each block's frame in the file `selected`. near: about near-duplicates; None: they were not searched.
    """

    domains: list[Kept]
    candidates: list[Candidates]
    starts: np.ndarray
    offsets: list[int]
    near: NearDuplicatesRecord | None

    def of_block(self, stage: Stage, number: int) -> np.ndarray:
        """Return which documents of a block are kept, bool [documents]."""
        with stage.path("selected").open("rb") as file:
            kept: np.ndarray = read_frame(file, self.offsets[number])
        return kept

    def blocks_of(self, at_N: np.ndarray) -> np.ndarray:
        """Return the number of the block of each document, by its position among the documents of all blocks."""
        return np.searchsorted(self.starts, at_N, side="right") - 1

    def uncertain(self, number: int) -> set[int]:
        """Return the numbers of those documents of a block that are candidates for the held-out set of their domain."""
        first, end = self.starts[number], self.starts[number + 1]
        every = np.concatenate([each.at_N for each in self.candidates])
        return set((every[(every >= first) & (every < end)] - first).tolist())


class Lowest:
    """Documents of the lowest hashes of many: `least` documents, and as many as begin before `size` bytes, or tokens, of them."""

    def __init__(self, least: int, size: int, weight: str = "bytes", kind: np.dtype = _PLACED) -> None:
        self._least, self._size, self._weight = least, size, weight
        self.found_N = np.zeros(0, kind)

    def add(self, records_N: np.ndarray) -> None:
        """Add documents."""
        found_N = np.concatenate([self.found_N, records_N])
        found_N = found_N[np.lexsort([found_N[key] for key in ("at", "hold_low", "hold_high")])]
        weights_N = found_N[self._weight].astype(np.int64)
        before_N = np.cumsum(weights_N) - weights_N
        self.found_N = found_N[: max(self._least, int(np.searchsorted(before_N, self._size, side="right")))].copy()


def select(work: Work, blocks: Sequence[Block]) -> Selection:
    """Select the documents to keep, write them to the file `selected` of the stage, and choose the candidates of each domain."""
    data, domains = work.config.data, work.domains
    begins = starts(blocks)
    kept_N = np.zeros(begins[-1], bool)
    found = _near_duplicates(work, blocks)
    near_N = np.concatenate([np.zeros(0, bool), *map(found.drops, range(len(blocks)))]) if found else None
    counts = [Kept(work.limit) for _ in domains]
    lowest = [Lowest(CANDIDATES_PER_DOCUMENT, _candidate_bytes(data)) for _ in domains]
    for number in range(index_parts(work.size)):
        parts = [block.of_part(work.stage, number) for block in blocks]
        records_N = np.concatenate([np.zeros(0, INDEX), *parts])
        at_N = np.repeat(begins[:-1], [len(some) for some in parts]) + records_N["number"]
        order_N = np.lexsort((at_N, records_N["key_low"], records_N["key_high"], records_N["domain"]))
        bounds = np.searchsorted(records_N["domain"][order_N], np.arange(len(domains) + 1))
        for domain, first, end in zip(domains, bounds[:-1], bounds[1:], strict=True):
            some_N = _placed(records_N, at_N, order_N[first:end], counts[domain.index], near_N)
            kept_N[some_N["at"]] = True
            lowest[domain.index].add(some_N)
    with work.stage.writing("selected") as file:
        offsets = [write_frame(file, kept_N[a:b]) for a, b in pairwise(begins)]
    candidates = [
        held_out_candidates(each.found_N, count.kept, data, work.config.data_of(domain.index).held_out)
        for domain, count, each in zip(domains, counts, lowest, strict=True)
    ]
    near = None if found is None else _record(work, blocks, found)
    return Selection(counts, candidates, begins, offsets, near)


def _near_duplicates(work: Work, blocks: Sequence[Block]) -> NearDuplicates | None:
    """Find the near-duplicates among the documents of all blocks, if the configuration says so."""
    if (threshold := work.config.data.near_duplicates) is None:
        return None
    folder = work.stage.path("near")
    folder.mkdir(exist_ok=True)
    return near_duplicates([work.stage.path(f"{block.name}.signatures") for block in blocks], threshold, folder)


def _record(work: Work, blocks: Sequence[Block], found: NearDuplicates) -> NearDuplicatesRecord:
    """Return what the manifest has of near-duplicates."""
    names = [domain.name for domain in work.domains]
    domain_N = np.concatenate([np.zeros(0, INDEX["domain"]), *(block.index(work.stage)["domain"] for block in blocks)])
    show = partial(_shown, work, blocks, found.begins)
    return NearDuplicatesRecord(
        pairs=found.pairs,
        passed_over=found.passed_over,
        groups=found.groups,
        lost={
            f"{names[lost]} to {names[kept]}": count for (lost, kept), count in sorted(found.dropped(domain_N).items())
        },
        examples=[(show(one), show(other)) for one, other in found.examples(_EXAMPLES)],
    )


def _shown(work: Work, blocks: Sequence[Block], begins: Sequence[int], at: int) -> str:
    """Return the beginning of the text of a document, by its position among those of all blocks. begins: those of the blocks."""
    number = int(np.searchsorted(begins, at, side="right")) - 1
    left = at - begins[number]
    for some in read_frames(work.stage.path(f"{blocks[number].name}.documents")):
        if left < len(some):
            value: Any = some[left][1]
            text = value if isinstance(value, str) else "\n".join(side for _, side in value)
            return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
        left -= len(some)
    raise IndexError(at)


def _placed(
    records_N: np.ndarray, at_N: np.ndarray, order_N: np.ndarray, counts: Kept, near_N: np.ndarray | None
) -> np.ndarray:
    """Return the documents of one domain that are kept, _PLACED, of those at order_N. near_N: True for the
    near-duplicates of all blocks; None: they were not searched."""
    named_N = np.zeros(len(order_N), [*INDEX.descr, ("at", "<i8")])
    for name in INDEX.names or ():
        named_N[name] = records_N[name][order_N]
    named_N["at"] = at_N[order_N]
    kept_N = counts.keep(named_N, None if near_N is None else near_N[named_N["at"]])
    return kept_N[list(_PLACED.names or ())].astype(_PLACED)


def _candidate_bytes(data: DataConfig) -> int:
    return CANDIDATES_PER_DOCUMENT * _BYTES_PER_TOKEN * data.max_held_out_tokens


def held_out_candidates(lowest_N: np.ndarray, documents: int, data: DataConfig, held_out: float) -> Candidates:
    """Choose the candidates for the held-out set of a domain. data: section `data`. held_out: the domain's own fraction.

    lowest_N: the domain's first documents by hash, as `Lowest` finds them. documents: number of all.
    The number to hold out is the fraction `held_out` of all, at least one. Candidates are the documents of the lowest hashes,
    `CANDIDATES_PER_DOCUMENT` times the number that `data.held_out` asks for, but not over half of the documents unless more are to
    be held out, and of no more text than data.max_held_out_tokens needs; one is always left to train on. All other documents make
    the vocabulary, so that a domain's own fraction does not change it unless it needs more candidates.
    """
    wanted, usual = (max(0, min(max(1, round(f * documents)), documents - 1)) for f in (held_out, data.held_out))
    count = max(wanted, min(CANDIDATES_PER_DOCUMENT * usual, documents // 2))
    within = int((np.cumsum(lowest_N["bytes"][:count], dtype=np.int64) <= _candidate_bytes(data)).sum())
    return Candidates(lowest_N["at"][: min(count, max(within, CANDIDATES_PER_DOCUMENT))].copy(), wanted)
