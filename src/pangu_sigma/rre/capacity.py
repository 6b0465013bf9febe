"""Plans for tokens whose expert another rank holds: the all-to-all layout.

Shape suffixes: N RRE layers, G micro-batches, B sequences, S sequence, T tokens of a rank, D takers of sequences, K experts stored
in a layer, by all ranks or by one, P expert ranks of a group, A entries of the active list of each, Q = P·A, C capacity;
R = P·A·C rows that a rank sends, and as many that it receives.

Row (peer · A + entry) · C + i of the rows that a rank sends is its i-th token, in batch order, for the expert at `entry` of the
active list of rank `peer` of its group. The shape is fixed, so the C rows of an expert can be too few. The ids say so before the
step, and to every rank alike.
"""

from __future__ import annotations

import numpy as np

from pangu_sigma.errors import UserError
from pangu_sigma.rre.plan import RoutingPlan


class CapacityError(UserError, ValueError):
    """More rows for an expert than its capacity, and `parallel.overflow` refuses to drop them."""


def exchange_plans(
    experts_NGT: np.ndarray, held_PK: np.ndarray, active_PNA: np.ndarray, peer: int, capacity: int
) -> list[RoutingPlan]:
    """Plans of G micro-batches of one rank.

    experts_NGT: expert of each of the rank's tokens, by its number among all K.
    held_PK: numbers of the experts that each rank of the group stores, ascending.
    active_PNA: active list of each rank of the group, in rows of its store.
    peer: number of this rank in its group.
    capacity: C.
    In a plan, order_NR holds the token of each row, -1 where a row is empty; inverse_NT the row of each token, -1 for a token that
    found no room; offsets_NA1 gives every entry P·C rows; active_NA is the active list of this rank.
    """
    peers, layers, entries = active_PNA.shape
    ids_PNA = np.take_along_axis(
        np.pad(held_PK, ((0, 0), (0, 1)), constant_values=-1)[:, None], active_PNA, axis=2
    )  # no expert at unused entries
    uniform_NA1 = np.tile(np.arange(entries + 1) * peers * capacity, (layers, 1))
    plans = []
    for g in range(experts_NGT.shape[1]):
        both = [_assign_rows(experts_NGT[n, g], ids_PNA[:, n].ravel(), capacity) for n in range(layers)]
        order_NR, inverse_NT = (np.stack(of_layers) for of_layers in zip(*both, strict=True))
        arrays = (active_PNA[peer], order_NR, inverse_NT, uniform_NA1)
        plans.append(RoutingPlan(*(array.astype(np.int32) for array in arrays)))
    return plans


def _assign_rows(experts_T: np.ndarray, ids_Q: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Order and inverse of one layer: to each token the next free row of its expert, as long as there is one.

    ids_Q: expert at each of the P·A entries, -1 where there is none.
    """
    entry_K = np.full(max(ids_Q.max(), experts_T.max()) + 1, -1)
    entry_K[ids_Q[ids_Q >= 0]] = np.flatnonzero(ids_Q >= 0)
    entry_T = entry_K[experts_T]
    sorted_T = np.argsort(entry_T, kind="stable")
    counts_Q = np.bincount(entry_T, minlength=len(ids_Q))
    number_T = np.arange(len(sorted_T)) - np.repeat(np.cumsum(counts_Q) - counts_Q, counts_Q)
    fits = number_T < capacity
    tokens, rows = sorted_T[fits], (entry_T[sorted_T] * capacity + number_T)[fits]
    order_R, inverse_T = np.full(len(ids_Q) * capacity, -1), np.full(len(experts_T), -1)
    order_R[rows], inverse_T[tokens] = tokens, rows
    return order_R, inverse_T


def sent_rows(experts_NGBS: np.ndarray, taker_B: np.ndarray, takers: int, stored: int) -> np.ndarray:
    """Number of rows for each expert from each taker of sequences, int64 [N, G, takers, K].

    taker_B: the taker of each sequence. takers: number of takers. stored: K.
    """
    layers, micro = experts_NGBS.shape[:2]
    bins = experts_NGBS + stored * taker_B[:, None]
    counts = [np.bincount(b.ravel(), minlength=takers * stored) for b in bins.reshape(layers * micro, -1)]
    return np.stack(counts).reshape(layers, micro, takers, stored)


def dropped_rows(sent_NGDK: np.ndarray, capacity: int, tokens: int, active: int, overflow: str) -> int:
    """Number of rows beyond the capacity, over all layers.

    tokens: tokens of a taker in a micro-batch. active: experts among which an even share divides them.
    overflow: value of `parallel.overflow`. Raises CapacityError when there are such rows and `overflow` is "refuse".
    """
    most = int(sent_NGDK.max())
    if most > capacity and overflow == "refuse":
        layer, _, _, expert = np.unravel_index(sent_NGDK.argmax(), sent_NGDK.shape)
        needed = np.ceil(most * active / tokens * 100) / 100
        raise CapacityError(
            f"RRE layer {layer}: a rank has {most} rows for expert {expert}, whose capacity is {capacity}; "
            f"set parallel.capacity_factor to {needed:g} or more for this batch (routing.table=balanced lowers what is needed), "
            "or parallel.overflow to drop"
        )
    return int(np.maximum(sent_NGDK - capacity, 0).sum())
