"""Plans for tokens whose expert another rank holds, in three layouts of their rows.

Shape suffixes: N RRE layers, G micro-batches, B sequences, S sequence, T tokens of a rank, D takers of sequences, K experts stored
in a layer, by all ranks or by one, P expert ranks of a group, A entries of the active list of each, Q = P·A, C capacity; R rows
that a rank sends, W rows that its experts multiply.

    all_to_all   R = W = P·A·C: C rows for each entry of each rank. What arrives is multiplied as it is.
    compacted    R = P·A·C as well; of what arrives, `arrive` brings the rows of an expert together, as many for each: W = A · room.
    dropless     R = T + 1: what there is, by receiver and entry; W = room, and an expert has as many of them as it gets.

Row (peer · A + entry) · C + i of the rows that a rank sends is its i-th token, in batch order, for the expert at `entry` of the
active list of rank `peer` of its group; in the dropless layout rows follow each other in the same order without gaps. Shapes are
fixed, so there can be too little room. The ids say so before the step, and to every rank alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pangu_sigma.errors import UserError
from pangu_sigma.rre.plan import RoutingPlan

DispatchLayout = Literal["local", "all_to_all", "compacted", "dropless"]
"""The layout of the rows of an RRE layer. `local`: a rank stores all experts that its tokens go to, and nothing travels. The others
are those of this module, whose group of ranks may be a single one."""


class CapacityError(UserError, ValueError):
    """More rows than there is room for, and `parallel.overflow` refuses to drop them."""


@dataclass(frozen=True)
class Room:
    """Room for rows. sent: C, rows of one rank for one expert; None: any number. arrived: rows of an expert on the rank that stores
    it, or in the dropless layout of all its experts together; None: all that were sent."""

    sent: int | None
    arrived: int | None = None


@dataclass(frozen=True)
class ExchangePlan(RoutingPlan):
    """A plan whose rows travel. order_NR holds the token of each row that is sent, -1 where a row is empty; inverse_NT the row of
    each token, -1 for one that found no room; active_NA is the active list of this rank, in rows of its store.

    offsets_NA1: the rows of each entry among those that are multiplied, empty ones included.
    arrive_NW: the arrived row at each row that is multiplied, -1 where there is none.
    leave_NR: the multiplied row of each arrived one, -1 where it is empty; in the dropless layout W + 1 long, whatever
        arrives.
    sent_NP, taken_NP: rows for each rank of the group, and from each. All int32.
    """

    arrive_NW: np.ndarray
    leave_NR: np.ndarray
    sent_NP: np.ndarray
    taken_NP: np.ndarray

    @property
    def order_NR(self) -> np.ndarray:
        """The token of each row that is sent: `order_NT` by its name here."""
        return self.order_NT

    @property
    def ends_NA(self) -> np.ndarray:
        """The row after the last of each entry, among those that are multiplied."""
        return self.offsets_NA1[:, 1:]


def exchange_plans(
    layout: DispatchLayout,
    experts_NGT: np.ndarray,
    ids_PNA: np.ndarray,
    active_NA: np.ndarray,
    peer: int,
    kept_NGPK: np.ndarray,
    room: Room,
) -> list[RoutingPlan]:
    """Plans of G micro-batches of one rank; an `ExchangePlan` each where rows are brought together on arrival.

    experts_NGT: expert of each of the rank's tokens, by its number among all K.
    ids_PNA: expert at each entry of the active list of each rank of the group, -1 at unused ones. active_NA: the rank's own list,
        in rows of its store. peer: number of this rank in its group.
    kept_NGPK: rows that each rank of the group sends to each expert, as `Receivers.kept` leaves them.
    """
    kind = RoutingPlan if layout == "all_to_all" else ExchangePlan
    plans = []
    for g in range(experts_NGT.shape[1]):
        layers = [
            _plan_layer(layout, experts_NGT[n, g], ids_PNA[:, n], peer, kept_NGPK[n, g], room)
            for n in range(len(active_NA))
        ]
        arrays = (active_NA, *map(np.stack, zip(*layers, strict=True)))
        plans.append(kind(*(array.astype(np.int32) for array in arrays)))
    return plans


def _plan_layer(
    layout: DispatchLayout, experts_T: np.ndarray, ids_PA: np.ndarray, peer: int, kept_PK: np.ndarray, room: Room
) -> tuple[np.ndarray, ...]:
    """Order, inverse and offsets of one layer; and arrive, leave, sent and taken where rows are brought together."""
    entries = ids_PA.shape[1]
    sent_PA = np.where(ids_PA >= 0, kept_PK[peer][ids_PA], 0)
    taken_PA = np.where(ids_PA[peer] >= 0, kept_PK[:, ids_PA[peer]], 0)
    if layout == "dropless":
        rows = len(experts_T) + 1
        sent_P, first_Q = _without_gaps(sent_PA, peer)
        taken_P, arrived_Q = _without_gaps(taken_PA, peer)
    else:
        assert room.sent is not None
        rows = ids_PA.size * room.sent  # equal parts for all entries: auto-parallel knows no other exchange
        sent_P, taken_P = sent_PA.sum(axis=1), taken_PA.sum(axis=1)
        first_Q = arrived_Q = np.arange(ids_PA.size) * room.sent
    order_R, inverse_T = _assign_rows(experts_T, ids_PA.ravel(), kept_PK[peer], first_Q, rows)
    if room.arrived is None:
        return order_R, inverse_T, np.arange(entries + 1) * (rows // entries)
    offsets_A1, leave_R = np.arange(entries + 1) * room.arrived, np.full(rows, -1)
    if layout == "dropless":
        # the last has the empty rows, too: GroupedMatmul writes none behind the last end, and what nobody wrote must not be read
        offsets_A1 = np.append(_starts(taken_PA.sum(axis=0)), room.arrived)
        leave_R = np.full(room.arrived + 1, -1)  # the rank's own empty row comes too; a graph has one shape
    arrive_W = _bring_together(taken_PA, arrived_Q.reshape(taken_PA.shape), offsets_A1, leave_R)
    return order_R, inverse_T, offsets_A1, arrive_W, leave_R, sent_P, taken_P


def _without_gaps(counts_PA: np.ndarray, peer: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for each rank, or from each, and the first row of each of its entries, if rows follow each other.

    A rank sends itself one empty row more, behind its others: MindSpore's AlltoAllV has no result where nothing arrives.
    """
    extra_P1 = (np.arange(len(counts_PA)) == peer).astype(counts_PA.dtype)[:, None]
    counts = np.hstack([counts_PA, extra_P1])
    return counts.sum(axis=1), _starts(counts.ravel()).reshape(counts.shape)[:, :-1].ravel()


def _starts(counts: np.ndarray) -> np.ndarray:
    """First row of each of some parts that follow each other."""
    return np.cumsum(counts) - counts


def _assign_rows(
    experts_T: np.ndarray, ids_Q: np.ndarray, kept_K: np.ndarray, first_Q: np.ndarray, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Order and inverse of one layer: to each token the next free row of its expert, as long as there is one.

    ids_Q: expert at each of the P·A entries, -1 where there is none. kept_K: rows of each expert. first_Q: first row of each entry.
    rows: R.
    """
    entry_K = np.full(len(kept_K), -1)
    entry_K[ids_Q[ids_Q >= 0]] = np.flatnonzero(ids_Q >= 0)
    entry_T = entry_K[experts_T]
    sorted_T = np.argsort(entry_T, kind="stable")
    counts_Q = np.bincount(entry_T, minlength=len(ids_Q))
    number_T = np.arange(len(sorted_T)) - np.repeat(_starts(counts_Q), counts_Q)
    fits = number_T < kept_K[experts_T[sorted_T]]
    tokens, taken = sorted_T[fits], (first_Q[entry_T[sorted_T]] + number_T)[fits]
    order_R, inverse_T = np.full(rows, -1), np.full(len(experts_T), -1)
    order_R[taken], inverse_T[tokens] = tokens, taken
    return order_R, inverse_T


def _bring_together(
    taken_PA: np.ndarray, arrived_PA: np.ndarray, offsets_A1: np.ndarray, leave_R: np.ndarray
) -> np.ndarray:
    """Arrive of one layer: the rows of an entry one behind the other, by sender and then by number.

    taken_PA: rows from each sender for each entry. arrived_PA: where the first of them arrives. leave_R: all -1; it is filled.
    """
    count_Q = taken_PA.ravel()
    of_row = np.repeat(np.arange(len(count_Q)), count_Q)
    number = np.arange(len(of_row)) - _starts(count_Q)[of_row]
    before_PA = np.cumsum(taken_PA, axis=0) - taken_PA + offsets_A1[:-1]
    there, here = arrived_PA.ravel()[of_row] + number, before_PA.ravel()[of_row] + number
    arrive_W = np.full(offsets_A1[-1], -1)
    arrive_W[here], leave_R[there] = there, here
    return arrive_W


def sent_rows(experts_NGBS: np.ndarray, taker_B: np.ndarray, takers: int, stored: int) -> np.ndarray:
    """Number of rows for each expert from each taker of sequences, int64 [N, G, takers, K].

    taker_B: the taker of each sequence. takers: number of takers. stored: K.
    """
    layers, micro = experts_NGBS.shape[:2]
    bins = experts_NGBS + stored * taker_B[:, None]
    counts = [np.bincount(b.ravel(), minlength=takers * stored) for b in bins.reshape(layers * micro, -1)]
    return np.stack(counts).reshape(layers, micro, takers, stored)


@dataclass(frozen=True)
class Receivers:
    """Who gets the rows that `sent_rows` counts.

    groups: number of groups; takers are numbered by group, rank of the group, replica. holder_K: the rank of its group that stores
    each expert.
    """

    layout: DispatchLayout
    groups: int
    holder_K: np.ndarray

    def kept(self, sent_NGDK: np.ndarray, room: Room) -> np.ndarray:
        """The rows for which there is room, in the same shape: the first of a sender, and those of the first senders."""
        kept = sent_NGDK if room.sent is None else np.minimum(sent_NGDK, room.sent)
        if room.arrived is None:
            return kept
        by_sender = self._by_sender(kept)
        if self.layout != "dropless":
            filled = np.minimum(np.cumsum(by_sender, axis=3), room.arrived)
            return np.diff(filled, prepend=0, axis=3).reshape(sent_NGDK.shape)
        found = np.empty_like(by_sender)
        for peer in range(by_sender.shape[3]):
            own = np.moveaxis(by_sender[..., self.holder_K == peer], 3, -2)  # N G groups replicas P K
            filled = np.minimum(np.cumsum(own.reshape(*own.shape[:-2], -1), axis=-1), room.arrived)
            own = np.diff(filled, prepend=0, axis=-1).reshape(own.shape)
            found[..., self.holder_K == peer] = np.moveaxis(own, -2, 3)
        return found.reshape(sent_NGDK.shape)

    def arrived(self, sent_NGDK: np.ndarray) -> np.ndarray:
        """Rows that arrive for each expert [N, G, groups, replicas, K], or in the dropless layout on each rank of a group
        [N, G, groups, replicas, P]."""
        arrived = self._by_sender(sent_NGDK).sum(axis=3)
        if self.layout != "dropless":
            return arrived
        peers = range(self.holder_K.max() + 1)
        return np.stack([arrived[..., self.holder_K == peer].sum(axis=-1) for peer in peers], axis=-1)

    def _by_sender(self, sent_NGDK: np.ndarray) -> np.ndarray:
        """The same, [N, G, groups, P, replicas, K]."""
        layers, micro, _, stored = sent_NGDK.shape
        return sent_NGDK.reshape(layers, micro, self.groups, self.holder_K.max() + 1, -1, stored)


_ADVICE = "for this batch (routing.table=balanced lowers what is needed), or parallel.overflow to drop"


def refuse_sent(sent_NGDK: np.ndarray, capacity: int, tokens: int, active: int) -> None:
    """Raise CapacityError if a rank has more rows for an expert than `capacity`.

    tokens: tokens of a taker in a micro-batch. active: experts among which an even share divides them.
    """
    most = int(sent_NGDK.max())
    if most > capacity:
        layer, _, _, expert = np.unravel_index(sent_NGDK.argmax(), sent_NGDK.shape)
        needed = np.ceil(most * active / tokens * 100) / 100
        raise CapacityError(
            f"RRE layer {layer}: a rank has {most} rows for expert {expert}, whose capacity is {capacity}; "
            f"set parallel.capacity_factor to {needed:g} or more {_ADVICE}"
        )


def refuse_arrived(arrived: np.ndarray, room: int, even: float) -> None:
    """Raise CapacityError if more rows arrive than there is `room` for. arrived: of `Receivers`. even: what would arrive evenly."""
    most = int(arrived.max())
    if most > room:
        layer = np.unravel_index(arrived.argmax(), arrived.shape)[0]
        needed = np.ceil(most / even * 100) / 100
        raise CapacityError(
            f"RRE layer {layer}: {most} rows arrive where {room} have room; "
            f"set parallel.arrival_factor to {needed:g} or more {_ADVICE}"
        )
