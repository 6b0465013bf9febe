"""Passes `overlap` and `choose`: candidates of each domain → which of them are held out.

A domain's candidates are in memory, with their windows of tokens, and of the other documents the number in which each window
occurs, a sum over blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from pangu_sigma.data.prepare.blocks import Work
from pangu_sigma.data.prepare.encoding import ENCODED, candidates_of, ids_of, others_of
from pangu_sigma.data.prepare.held_out.overlap import Finder, HeldOutSize, choose_held_out, finder_of
from pangu_sigma.data.prepare.selection import held_out_count
from pangu_sigma.data.prepare.stages.stage import Stage, numbered

_PARTS = 64
"""Number of parts, at most, in which the overlap of a domain is counted: one process adds them up, and all cores have enough."""


@dataclass(frozen=True)
class OverlapItem:
    """Part of the blocks, by index, whose documents of a domain are compared with its candidates. blocks: number of all blocks."""

    domain: int
    part: range
    blocks: int


@dataclass(frozen=True)
class ChooseItem:
    """Domain to choose from. blocks: number of blocks. results: numbers of its results of `overlap`. documents: number of its
    documents. more_text: advice on how to have more text of it."""

    domain: int
    blocks: int
    results: range
    documents: int
    more_text: str


def overlap_items(domain: int, blocks: int) -> list[OverlapItem]:
    """Return the items of the pass `overlap` of a domain."""
    size = max(1, -(-blocks // _PARTS))
    return [OverlapItem(domain, range(blocks)[first : first + size], blocks) for first in range(0, blocks, size)]


def _candidates(stage: Stage, domain: int, blocks: int) -> pa.Table:
    """Return the candidates of a domain, first choice first."""
    columns = ["document", "rank", "tokens", "ids"]
    tables = [stage.read(f"encode/{numbered(block)}", candidates_of(domain), columns) for block in range(blocks)]
    empty = pa.schema([ENCODED.field(name) for name in columns]).empty_table()
    return pa.concat_tables([empty, *tables]).sort_by("rank")


@functools.lru_cache(maxsize=1)
def _finder(stage: Stage, domain: int, blocks: int) -> Finder:
    """Return the search for the windows of a domain's candidates; they may be many, and items come domain by domain."""
    return finder_of(ids_of(_candidates(stage, domain, blocks)))


def count_overlap(work: Work, number: int, item: OverlapItem) -> Iterator[pa.Table]:
    """Count for each window in how many documents of a domain, of the item's blocks, it occurs; candidates do not count. The
    columns are the results of `Finder.count`."""
    names = (f"encode/{numbered(block)}" for block in item.part)
    tables = (work.stage.read(name, others_of(item.domain), ["tokens", "ids"]) for name in names)
    others = (ids for table in tables for ids in ids_of(table))
    windows, counts = _finder(work.stage, item.domain, item.blocks).count(others)
    yield pa.table({"window": windows, "count": counts})


def choose(work: Work, number: int, item: ChooseItem) -> Iterator[pa.Table]:
    """Choose the documents of a domain to hold out: their numbers, ascending, their tokens, and how they were chosen."""
    data = work.config.data_of(item.domain)
    count = held_out_count(item.documents, data.held_out)
    demand = HeldOutSize(data, count, work.config.model.seq_length + 1, item.more_text)
    tables = (work.stage.read(f"overlap/{numbered(part)}") for part in item.results)
    counts = ((table["window"].to_numpy(), table["count"].to_numpy()) for table in tables)
    candidates = _candidates(work.stage, item.domain, item.blocks)
    finder = _finder(work.stage, item.domain, item.blocks)
    choice = choose_held_out(ids_of(candidates), finder, counts, demand)
    held_out = candidates.take(pa.array(choice.numbers, pa.int64())).sort_by("document")
    yield pa.table(
        {
            "documents": pa.array([held_out["document"].to_pylist()], pa.list_(pa.int64())),
            "tokens": [sum(held_out["tokens"].to_pylist())],
            "overlap": [choice.overlap.model_dump_json()],
            "shortage": [choice.shortage],
        }
    )
