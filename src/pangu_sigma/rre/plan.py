"""Routing plan of a batch: its active experts, and the dispatch of every token. The host makes it from the token ids.

Shape suffixes: N segments of all RRE layers, G micro-batches, B batch, S sequence, T tokens = B·S, A entries of the active list, C
capacity.

The device never sorts, counts or compares: dispatch is a gather by `order`, combine is a gather by `inverse`, and each is the
gradient of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pangu_sigma.config import ConfigError
from pangu_sigma.rre.table import RoutingTable


@dataclass(frozen=True)
class RoutingPlan:
    """Dispatch and combine indices of the T tokens of a batch in each segment. All arrays are int32.

    active_NA: ascending ids of the experts with at least one token, or of all experts if every one has an entry. Unused entries
        hold `stored` (one past the last expert) and have no tokens, so nothing is multiplied or updated there.
    order_NT: row i of the sorted tokens is token order[i]. Tokens of one expert keep their order in the batch.
    inverse_NT: token t is row inverse[t] of the sorted tokens.
    offsets_NA1: the tokens of the expert at entry a are the sorted rows offsets[a] … offsets[a + 1] - 1.
    """

    active_NA: np.ndarray
    order_NT: np.ndarray
    inverse_NT: np.ndarray
    offsets_NA1: np.ndarray

    def load(self) -> np.ndarray:
        """Return the number of tokens of each entry of the active list, int32 [N, A]."""
        return np.diff(self.offsets_NA1, axis=1)


def route(table: RoutingTable, ids_GBS: np.ndarray, domains_GB: np.ndarray, positions_GBS: np.ndarray) -> np.ndarray:
    """Return the expert of each token in each segment, int32 [N, G, B, S]; G micro-batches. domains_GB: sequences' domains."""
    return table.route(ids_GBS, np.broadcast_to(domains_GB[..., None], ids_GBS.shape), positions_GBS)


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


def plan_rows(experts_NGT: np.ndarray, active_NA: np.ndarray) -> list[RoutingPlan]:
    """Make the routing plans of G micro-batches on one rank. The active lists must hold all experts of these tokens."""
    plans = []
    for g in range(experts_NGT.shape[1]):
        layers = [_sort_by_expert(experts_NGT[n, g], active_A) for n, active_A in enumerate(active_NA)]
        order_NT, inverse_NT, offsets_NA1 = (np.stack(rows).astype(np.int32) for rows in zip(*layers, strict=True))
        plans.append(RoutingPlan(active_NA.astype(np.int32), order_NT, inverse_NT, offsets_NA1))
    return plans


def _sort_by_expert(experts_T: np.ndarray, active_A: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return order, inverse and offsets of one layer."""
    order = np.argsort(experts_T, kind="stable")
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    counts_K = np.bincount(experts_T, minlength=active_A.max() + 1)  # 0 for unused entries: no token is routed there
    return order, inverse, np.concatenate([[0], np.cumsum(counts_K[active_A])])
