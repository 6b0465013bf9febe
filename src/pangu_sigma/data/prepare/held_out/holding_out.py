"""Passes `overlap` and `choose`: candidates of each domain → which of them are held out.

A domain's candidates are in memory, with their windows of tokens, and of the other documents the number in which each window
occurs, a sum over blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pyarrow as pa

from pangu_sigma.data.prepare.blocks import Work
from pangu_sigma.data.prepare.encoding import CANDIDATES, OTHERS, encoded, ids_of
from pangu_sigma.data.prepare.held_out.overlap import Finder, choose_held_out
from pangu_sigma.data.prepare.selection import Selection, held_out_count, selection_of
from pangu_sigma.data.prepare.stages.stage import Stage, numbered

_PARTS = 64
"""Number of parts, at most, in which the overlap of a domain is counted: one process adds them up, and all cores have enough."""

OverlapItem = tuple[int, list[int]]
"""A domain, and a part of the blocks that have documents of it."""


def overlap_items(selection: Selection) -> list[OverlapItem]:
    """Return the items of the pass `overlap`."""
    return [
        (n, domain.blocks[first : first + size])
        for n, domain in enumerate(selection.domains)
        if (size := -(-len(domain.blocks) // _PARTS))
        for first in range(0, len(domain.blocks), size)
    ]


def _candidates(stage: Stage, domain: int) -> pa.Table:
    """Return the candidates of a domain, first choice first."""
    blocks, columns = selection_of(stage).domains[domain].blocks, ["document", "rank", "tokens", "ids"]
    return pa.concat_tables(encoded(stage, blocks, domain, CANDIDATES, columns)).sort_by("rank")


@functools.lru_cache(maxsize=1)
def _finder(stage: Stage, domain: int) -> Finder:
    """Return the search for the windows of a domain's candidates; they may be many, and items come domain by domain."""
    return Finder(ids_of(_candidates(stage, domain)))


def count_overlap(work: Work, item: OverlapItem) -> Iterator[pa.Table]:
    """Count for each window in how many documents of a domain, of the item's blocks, it occurs; candidates do not count. The
    columns are the results of `Finder.count`."""
    domain, blocks = item
    tables = encoded(work.stage, blocks, domain, OTHERS, ["tokens", "ids"])
    windows, counts = _finder(work.stage, domain).count(ids for table in tables for ids in ids_of(table))
    yield pa.table({"window": windows, "count": counts})


def choose(work: Work, domain: int) -> Iterator[pa.Table]:
    """Choose the documents of a domain to hold out: their numbers, ascending, and how they were chosen."""
    stage, selection = work.stage, selection_of(work.stage)
    data = work.config.data_of(domain)
    parts = [number for number, item in enumerate(overlap_items(selection)) if item[0] == domain]
    tables = (stage.read(f"overlap/{numbered(part)}") for part in parts)
    counts = ((table["window"].to_numpy(), table["count"].to_numpy()) for table in tables)
    candidates = _candidates(stage, domain)
    choice = choose_held_out(
        ids_of(candidates),
        _finder(stage, domain),
        counts,
        data,
        held_out_count(selection.domains[domain].kept, data.held_out),
        work.config.model.seq_length + 1,
    )
    held_out = candidates.take(pa.array(choice.numbers, pa.int64())).sort_by("document")
    yield pa.table(
        {
            "documents": pa.array([held_out["document"].to_pylist()], pa.list_(pa.int64())),
            "overlap": [choice.overlap.model_dump_json()],
            "shortage": [choice.shortage],
        }
    )
