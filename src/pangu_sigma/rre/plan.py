"""Routing plan of a batch: its active experts, and the dispatch of every token. The host makes it from the token ids.

Shape suffixes: N segments of all RRE layers, G micro-batches, B batch, S sequence, T tokens = B·S, A entries of the active list, K
experts that a rank stores in a segment.

The device never sorts, counts or compares: dispatch is a gather by `order`, combine is a gather by `inverse`, and each is the
gradient of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pangu_sigma.config import ConfigError
from pangu_sigma.sections import Segment


@dataclass(frozen=True, eq=False)
class RoutedSegment:
    """One of the N segments of all RRE layers, and the share of one rank: the facts by which the segment's experts are planned,
    stored, brought and updated.

    number: number of the segment among the N segments.
    experts: number of the segment's experts on all ranks together.
    held: ids of the experts that the rank stores, ascending: row k of its store is expert held[k].
    entries: A, length of the rank's list of active experts; with K entries every stored expert has one.
    learns: False if fine-tuning leaves its experts as they are.
    """

    number: int
    kind: Segment
    experts: int
    held: np.ndarray
    entries: int
    learns: bool

    @property
    def stored(self) -> int:
        """K, number of experts that the rank stores."""
        return len(self.held)

    @cached_property
    def row_of(self) -> np.ndarray:
        """Row of each expert in the rank's store, -1 if it is not there."""
        rows = np.full(self.experts, -1)
        rows[self.held] = np.arange(self.stored)
        return rows


@dataclass(frozen=True)
class RoutingPlan:
    """Routing plan of one segment for an update of G micro-batches. All arrays are int32.

    active_A: ascending rows of the store whose experts have at least one token, or all rows if every one has an entry. Unused
        entries hold K, one past the last row, and have no tokens, so nothing is multiplied or updated there.
    used_A1: used[a + 1] - used[a] is the number of tokens of entry a in all micro-batches together. Copies of an expert have the
        same number, because their update depends on it.
    order_GT: row i of the sorted tokens is token order[i]. Tokens of one expert keep their order in the batch. Tokens whose expert
        is not in the store are in no row: at the end of the rows as many hold -1.
    inverse_GT: token t is row inverse[t] of the sorted tokens, -1 for none.
    offsets_GA1: the tokens of the expert at entry a are the sorted rows offsets[a] … offsets[a + 1] - 1.
    dropped: number of tokens of the whole batch that have no expert, for want of room; only plans of NPUs have a limit.
    """

    active_A: np.ndarray
    used_A1: np.ndarray
    order_GT: np.ndarray
    inverse_GT: np.ndarray
    offsets_GA1: np.ndarray
    dropped: int = field(default=0, kw_only=True)


class Planner:
    """Maker of the routing plans of one process, which stores all experts and computes all tokens."""

    def __init__(self, routed: Sequence[RoutedSegment]):
        self.routed = routed

    def plan(self, experts_NGBS: np.ndarray, taker_B: np.ndarray) -> list[RoutingPlan]:
        """Return the plan of each segment. experts_NGBS: the expert of each token of the whole batch, in G micro-batches. taker_B:
        data-parallel rank of each sequence, which only planners of several ranks read."""
        return [plan_segment(s, experts, experts) for s, experts in zip(self.routed, experts_NGBS, strict=True)]


def plan_segment(segment: RoutedSegment, experts_GBS: np.ndarray, counted: np.ndarray) -> RoutingPlan:
    """Return the plan of a segment. experts_GBS: expert of each token that this rank computes. counted: expert of each token, on
    any rank, for which this rank updates its copy of the expert; in one process the same array."""
    rows = segment.row_of[counted]
    active_A, used_A1 = active_list(segment, rows[rows >= 0])
    rows_GT = segment.row_of[experts_GBS].reshape(len(experts_GBS), -1)
    order_G, inverse_G, offsets_G = zip(*(_sort_by_expert(rows_T, active_A) for rows_T in rows_GT), strict=True)
    stacked = (np.stack(arrays).astype(np.int32) for arrays in (order_G, inverse_G, offsets_G))
    return RoutingPlan(active_A, used_A1, *stacked)


def active_list(segment: RoutedSegment, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return active_A and used_A1 of a `RoutingPlan`. rows: row of the store for each token that makes an expert active.

    Raises ConfigError if the batch activates more experts than the list has entries.
    """
    stored, entries = segment.stored, segment.entries
    # with an entry for each stored expert the list is always the same, whichever have tokens
    active_rows = np.arange(stored) if entries == stored else np.unique(rows)
    if len(active_rows) > entries:
        raise ConfigError(
            f"the batch activates {len(active_rows)} experts of a layer, but the active list has {entries} entries; "
            "raise data.domains_per_step, or put fewer domains in a batch"
        )
    active_A = np.full(entries, stored, np.int32)  # one length for all batches: a graph is compiled for fixed shapes
    active_A[: len(active_rows)] = active_rows
    return active_A, _offsets(rows, active_A).astype(np.int32)


def _sort_by_expert(rows_T: np.ndarray, active_A: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return order [T], inverse [T] and offsets [A + 1] of one micro-batch. rows: store's row of each token's expert, or -1."""
    count = np.count_nonzero(rows_T >= 0)
    sorted_tokens = np.argsort(rows_T, kind="stable")[len(rows_T) - count :]  # tokens of no expert, at -1, come first
    order_T, inverse_T = np.full((2, len(rows_T)), -1)
    order_T[:count], inverse_T[sorted_tokens] = sorted_tokens, np.arange(count)
    return order_T, inverse_T, _offsets(rows_T[sorted_tokens], active_A)


def _offsets(rows: np.ndarray, active_A: np.ndarray) -> np.ndarray:
    """Return the first sorted row of each entry's tokens, and the end, [A + 1]. rows: row of each token's expert, in any order."""
    counts_K = np.bincount(rows, minlength=active_A.max() + 1)  # 0 for unused entries: no token is routed there
    return np.concatenate([[0], np.cumsum(counts_K[active_A])])
