"""Plans for tokens whose expert another rank holds: the all-to-all layout.

Shape suffixes: N RRE layers, G micro-batches, B sequences, S sequence, T tokens of a rank, D takers of sequences, K experts stored
in a layer, by all ranks or by one, P expert ranks of a group, A active places of each, Q = P·A, C capacity; R = P·A·C rows that a
rank sends, and as many that it receives.

Row (peer · A + place) · C + i of those that a rank sends is its i-th token, in batch order, for the expert in active place `place`
of rank `peer` of its group. The shape is fixed, so an expert's C rows can be too few: that is known from the ids, before the step
and on every rank alike.
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

    experts: of the rank's tokens, by their number among all K. held: which of them each rank of the group stores, ascending.
    active: active list of each, in rows of its store. peer: this rank's number in the group.
    Of a plan, order_NR holds tokens, -1 where a row is empty; inverse_NT rows, -1 for a token that found no room; offsets_NA1
    those of P·C rows for each place; active_NA is this rank's.
    """
    peers, layers, places = active_PNA.shape
    ids_PNA = np.take_along_axis(
        np.pad(held_PK, ((0, 0), (0, 1)), constant_values=-1)[:, None], active_PNA, axis=2
    )  # unused places: no expert
    uniform_NA1 = np.tile(np.arange(places + 1) * peers * capacity, (layers, 1))
    plans = []
    for g in range(experts_NGT.shape[1]):
        both = [_plan_layer(experts_NGT[n, g], ids_PNA[:, n].ravel(), capacity) for n in range(layers)]
        order_NR, inverse_NT = (np.stack(part) for part in zip(*both, strict=True))
        arrays = (active_PNA[peer], order_NR, inverse_NT, uniform_NA1)
        plans.append(RoutingPlan(*(array.astype(np.int32) for array in arrays)))
    return plans


def _plan_layer(experts_T: np.ndarray, ids_Q: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """ids_Q: expert of each of the P·A places, -1 where there is none."""
    place_K = np.full(max(ids_Q.max(), experts_T.max()) + 1, -1)
    place_K[ids_Q[ids_Q >= 0]] = np.flatnonzero(ids_Q >= 0)
    place_T = place_K[experts_T]
    sorted_T = np.argsort(place_T, kind="stable")
    counts_Q = np.bincount(place_T, minlength=len(ids_Q))
    number_T = np.arange(len(sorted_T)) - np.repeat(np.cumsum(counts_Q) - counts_Q, counts_Q)
    fits = number_T < capacity
    tokens, rows = sorted_T[fits], (place_T[sorted_T] * capacity + number_T)[fits]
    order_R, inverse_T = np.full(len(ids_Q) * capacity, -1), np.full(len(experts_T), -1)
    order_R[rows], inverse_T[tokens] = tokens, rows
    return order_R, inverse_T


def sent_rows(experts_NGBS: np.ndarray, taker_B: np.ndarray, takers: int, stored: int) -> np.ndarray:
    """Rows for each expert from each taker of sequences, int64 [N, G, takers, K]."""
    layers, micro = experts_NGBS.shape[:2]
    bins = experts_NGBS + stored * taker_B[:, None]
    counts = [np.bincount(b.ravel(), minlength=takers * stored) for b in bins.reshape(layers * micro, -1)]
    return np.stack(counts).reshape(layers, micro, takers, stored)


def dropped_rows(sent_NGDK: np.ndarray, capacity: int, tokens: int, active: int, overflow: str) -> int:
    """Rows beyond the capacity, over all layers.

    tokens: of a taker in a micro-batch. active: experts among which an even share divides them. overflow: `parallel.overflow`.
    Raises CapacityError when there are some and `overflow` is "refuse".
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
