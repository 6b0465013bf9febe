"""Routing plan of a batch: its active experts, and the dispatch of every token. The host makes it from the token ids.

Shape suffixes: N segments of all RRE layers, G micro-batches, B batch, S sequence, T tokens = B·S, A entries of the active list, K
experts of a segment.

The device never sorts, counts or compares: dispatch is a gather by `order`, combine is a gather by `inverse`, and each is the
gradient of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pangu_sigma.config import Config, ConfigError


@dataclass(frozen=True)
class RoutingPlan:
    """Dispatch and combine indices of the T tokens of a batch in each segment. All arrays are int32.

    active_NA: ascending ids of the experts with at least one token, or of all experts if every one has an entry. Unused entries
        hold `stored` (one past the last expert) and have no tokens, so nothing is multiplied or updated there.
    order_NT: row i of the sorted tokens is token order[i]. Tokens of one expert keep their order in the batch. Tokens whose expert
        is not in the store are in no row: at the end of the rows as many hold -1.
    inverse_NT: token t is row inverse[t] of the sorted tokens, -1 for none.
    offsets_NA1: the tokens of the expert at entry a are the sorted rows offsets[a] … offsets[a + 1] - 1.
    """

    active_NA: np.ndarray
    order_NT: np.ndarray
    inverse_NT: np.ndarray
    offsets_NA1: np.ndarray

    def load(self) -> np.ndarray:
        """Return the number of tokens of each entry of the active list, int32 [N, A]."""
        return np.diff(self.offsets_NA1, axis=1)


@dataclass(frozen=True)
class UpdatePlan:
    """Routing plans of one update.

    plans: one for each micro-batch.
    used_NA: number of tokens for each entry of the active list, in all micro-batches together. Copies of an expert have the same
        number, because their update depends on it.
    dropped: number of rows of the whole batch without room, so that their tokens have no expert; only plans of NPUs have a limit.
    """

    plans: Sequence[RoutingPlan]
    used_NA: np.ndarray
    dropped: int = 0


class Planner:
    """Maker of the routing plans of one process, which stores all experts and computes all tokens."""

    def __init__(self, config: Config):
        routed = config.model.routed
        self.stored = [np.arange(config.stored_experts(kind)) for kind in routed]
        """Row of each expert of each segment in the store, -1 if it is not there."""
        self.entries = [config.active_of(kind) for kind in routed]
        """Length of the active list of each segment."""

    def plan(self, experts_NGBS: np.ndarray, taker_B: np.ndarray) -> UpdatePlan:
        """Return the plans of one update. experts_NGBS: the expert of each token of the whole batch, in G micro-batches. taker_B:
        who trains on each sequence, if there are several."""
        return self.plan_tokens(experts_NGBS, list(experts_NGBS))

    def plan_tokens(self, experts_NGBS: np.ndarray, counted: Sequence[np.ndarray]) -> UpdatePlan:
        """Return the plans for the tokens of these experts. counted: for each segment the experts of all tokens of the update that
        make an expert active."""
        rows_N = [row_K[experts] for row_K, experts in zip(self.stored, counted, strict=True)]
        used_N = [rows[rows >= 0] for rows in rows_N]
        active_NA = active_lists(used_N, [int(row_K.max()) + 1 for row_K in self.stored], self.entries)
        tokens_NA = [np.bincount(used, minlength=a.max() + 1)[a] for used, a in zip(used_N, active_NA, strict=True)]
        rows_NGBS = np.stack([row_K[experts] for row_K, experts in zip(self.stored, experts_NGBS, strict=True)])
        return UpdatePlan(plan_rows(rows_NGBS.reshape(*rows_NGBS.shape[:2], -1), active_NA), np.stack(tokens_NA))


def active_lists(
    experts_N: Sequence[np.ndarray] | np.ndarray, stored_N: Sequence[int], entries_N: Sequence[int]
) -> np.ndarray:
    """Return the active list of each segment, int64 [N, A]: the distinct experts of its tokens, ascending; A is the longest list.

    stored_N: experts stored in each segment, K.
    entries_N: length of each segment's list. If it is K, the entry of each expert is its own number.
    Raises ConfigError if the batch activates more experts than the list has entries.
    """
    # the same length for all segments and steps: a graph is compiled for fixed shapes
    active_NA = np.full((len(experts_N), max(entries_N)), np.array(stored_N)[:, None])
    for active_A, experts, stored, entries in zip(active_NA, experts_N, stored_N, entries_N, strict=True):
        used = np.arange(stored) if entries == stored else np.unique(experts)
        if len(used) > entries:
            raise ConfigError(
                f"the batch activates {len(used)} experts of a layer, but the active list has {entries} entries; "
                "raise data.domains_per_step, or put fewer domains in a batch"
            )
        active_A[: len(used)] = used
    return active_NA


def plan_rows(rows_NGT: np.ndarray, active_NA: np.ndarray) -> list[RoutingPlan]:
    """Make the routing plans of G micro-batches. rows_NGT: row of each token's expert in the store, -1 if it is not there. The
    active lists must hold all others."""
    plans = []
    for g in range(rows_NGT.shape[1]):
        layers = [_sort_by_expert(rows_NGT[n, g], active_A) for n, active_A in enumerate(active_NA)]
        order_NT, inverse_NT, offsets_NA1 = (np.stack(arrays).astype(np.int32) for arrays in zip(*layers, strict=True))
        plans.append(RoutingPlan(active_NA.astype(np.int32), order_NT, inverse_NT, offsets_NA1))
    return plans


def _sort_by_expert(rows_T: np.ndarray, active_A: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return order, inverse and offsets of one layer."""
    here = np.count_nonzero(rows_T >= 0)
    sorted_T = np.argsort(rows_T, kind="stable")[len(rows_T) - here :]  # tokens of no expert, at -1, come first
    order, inverse = np.full((2, len(rows_T)), -1)
    order[:here], inverse[sorted_T] = sorted_T, np.arange(here)
    counts_K = np.bincount(
        rows_T[sorted_T], minlength=active_A.max() + 1
    )  # 0 for unused entries: no token is routed there
    return order, inverse, np.concatenate([[0], np.cumsum(counts_K[active_A])])
