"""Routing plans of NPUs, which exchange the rows of tokens with the ranks of their experts, in two layouts of the exchanged rows.

Shape suffixes: N segments, G micro-batches, B sequences, S sequence, T tokens of a rank, D data-parallel ranks ("takers") of
sequences, K experts stored in a segment, by all ranks or by one, P expert ranks of a group, A entries of each active list, Q = P·A,
C capacity; R rows that a rank sends, W rows that its experts multiply.

    compacted    R = P·A·C: C rows for each entry of each rank; `arrive` gathers the arrived rows of an expert, the same number
                 for each expert: W = A · room.
    dropless     R = T + 1: rows without padding, by receiver and entry; W = room, shared by the experts as their loads need.

Row (peer · A + entry) · C + i of the rows that a rank sends is its i-th token, in batch order, for the expert at `entry` of the
active list of rank `peer` of its group; in the dropless layout rows follow each other in the same order without gaps. Shapes are
fixed, so rows can exceed the capacity. Every rank knows it before the step, from the ids of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from pangu_sigma.errors import UserError
from pangu_sigma.rre.plan import RoutingPlan

Factor = Literal["capacity_factor", "arrival_factor"]
DispatchLayout = Literal["compacted", "dropless"]
"""Layout of the dispatched rows of an RRE layer; the group of ranks may be a single one."""


class CapacityError(UserError, ValueError):
    """Error of a batch whose rows for experts exceed the capacity, if `parallel.overflow` does not allow dropping them."""


class Capacity(NamedTuple):
    """Limits on the rows that ranks exchange. sent: C, the most rows from one rank for one expert, None without a limit.
    arrived: the most rows that arrive for one expert, or if dropless for all experts of a rank together."""

    sent: int | None
    arrived: int


@dataclass(frozen=True)
class ExchangePlan(RoutingPlan):
    """Routing plan of a segment on a rank that sends R rows to the P ranks of its expert group, and multiplies W rows. All arrays
    are int32.

    active_A: active list of this rank, as rows of its store.
    order_GR: token of each sent row, -1 for an empty row. inverse_GT: row of each token, -1 for a dropped one.
    offsets_GA1: first multiplied row of each entry, and the end of the last entry; empty rows are included.
    arrive_GW: arrived row that is copied to each multiplied row, -1 for none.
    leave_GR: multiplied row of each arrived row, -1 for an empty one; in the dropless layout always W + 1 long.
    sent_GP, taken_GP: number of rows to each rank of the group, and from each.
    """

    arrive_GW: np.ndarray
    leave_GR: np.ndarray
    sent_GP: np.ndarray
    taken_GP: np.ndarray

    @property
    def order_GR(self) -> np.ndarray:
        """Token of each sent row, -1 for an empty row; the field `order_GT` of the base class."""
        return self.order_GT

    @property
    def ends_GA(self) -> np.ndarray:
        """End, exclusive, of the multiplied rows of each entry of the active list."""
        return self.offsets_GA1[:, 1:]


def plan_micro_batch(
    layout: DispatchLayout, experts_T: np.ndarray, fit_PK: np.ndarray, ids_PA: np.ndarray, peer: int, room: Capacity
) -> tuple[np.ndarray, ...]:
    """Return the array fields of `ExchangePlan` for one micro-batch of a segment on one rank, in their order: order_R, inverse_T,
    offsets_A1, arrive_W, leave_R, sent_P, taken_P. P: ranks of the expert group. A: entries of an active list.

    Args:
        experts_T: expert of each of the rank's T tokens, by its number among all K.
        fit_PK: number of rows from each rank of the group to each expert that fit `room` (`Receivers.accepted`).
        ids_PA: expert at each entry of the active list of each rank of the group, -1 for unused entries.
        peer: number of this rank in its group.
        room: limits on the rows, from which the fixed lengths R and W follow.
    """
    # rows that this rank sends to each entry of each peer, and rows that arrive from each peer for each of its own entries
    sent_PA = np.where(ids_PA >= 0, fit_PK[peer][ids_PA], 0)
    taken_PA = np.where(ids_PA[peer] >= 0, fit_PK[:, ids_PA[peer]], 0)
    if layout == "dropless":
        row_count = len(experts_T) + 1
        sent_P, first_Q = _packed_rows(sent_PA, peer)
        taken_P, arrived_Q = _packed_rows(taken_PA, peer)
        # the last entry has the empty rows, too: GroupedMatmul writes nothing after its end, and unwritten rows must not be read
        offsets_A1 = np.append(_exclusive_sums(taken_PA.sum(axis=0)), room.arrived)
        leave_length = room.arrived + 1  # the most rows that can arrive, and the empty row that the rank sends itself
    else:
        assert room.sent is not None
        row_count = ids_PA.size * room.sent  # equal sizes for all entries: auto-parallel supports no other exchange
        sent_P, taken_P = sent_PA.sum(axis=1), taken_PA.sum(axis=1)
        first_Q = arrived_Q = np.arange(ids_PA.size) * room.sent
        offsets_A1, leave_length = np.arange(ids_PA.shape[1] + 1) * room.arrived, row_count
    order_R, inverse_T = _assign_rows(experts_T, ids_PA.ravel(), fit_PK[peer], first_Q, row_count)
    arrive_W, leave_R = _arrival_order(taken_PA, arrived_Q.reshape(taken_PA.shape), offsets_A1, leave_length)
    return order_R, inverse_T, offsets_A1, arrive_W, leave_R, sent_P, taken_P


def _packed_rows(counts_PA: np.ndarray, peer: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay out rows without gaps, sorted by rank, then by entry. Return the number of rows of each rank [P], and the first row of
    each entry of each rank [Q = P·A]. counts_PA: number of rows of each entry. peer: number of this rank in its group; it sends
    itself one more, empty row at the end, because MindSpore's AlltoAllV has no result if nothing arrives."""
    extra_P1 = (np.arange(len(counts_PA)) == peer).astype(counts_PA.dtype)[:, None]
    counts = np.hstack([counts_PA, extra_P1])
    return counts.sum(axis=1), _exclusive_sums(counts.ravel()).reshape(counts.shape)[:, :-1].ravel()


def _exclusive_sums(counts: np.ndarray) -> np.ndarray:
    """Return the sum of the counts before each one: the first row of an entry, if `counts` are the rows of entries."""
    return np.cumsum(counts) - counts


def _assign_rows(
    experts_T: np.ndarray, ids_Q: np.ndarray, fit_K: np.ndarray, first_Q: np.ndarray, row_count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Assign each token the next free row of its expert, as long as there is one. Return order_R, the token of each row, and
    inverse_T, the row of each token; -1 for none.

    experts_T: expert of each token. ids_Q: expert at each of the P·A entries of active lists, -1 for unused ones. fit_K: number of
    rows that each expert accepts. first_Q: first row of each entry. row_count: R."""
    entry_K = np.full(len(fit_K), -1)
    entry_K[ids_Q[ids_Q >= 0]] = np.flatnonzero(ids_Q >= 0)
    entry_T = entry_K[experts_T]
    sorted_T = np.argsort(entry_T, kind="stable")
    counts_Q = np.bincount(entry_T, minlength=len(ids_Q))
    # number of each sorted token among the tokens of its entry
    number_T = np.arange(len(sorted_T)) - np.repeat(_exclusive_sums(counts_Q), counts_Q)
    fits = number_T < fit_K[experts_T[sorted_T]]
    fitting_tokens, rows_of_tokens = sorted_T[fits], (first_Q[entry_T[sorted_T]] + number_T)[fits]
    order_R, inverse_T = np.full(row_count, -1), np.full(len(experts_T), -1)
    order_R[rows_of_tokens], inverse_T[fitting_tokens] = fitting_tokens, rows_of_tokens
    return order_R, inverse_T


def _arrival_order(
    taken_PA: np.ndarray, arrived_PA: np.ndarray, offsets_A1: np.ndarray, leave_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return arrive_W, the arrived row that is copied to each multiplied row, and leave_R, its inverse; -1 for none. The rows of an
    entry are sorted by sender, then by number.

    taken_PA: number of rows from each sender for each entry. arrived_PA: first of these rows among the arrived ones. offsets_A1:
    first multiplied row of each entry, and the end of the last one, W. leave_length: length of leave_R."""
    count_Q = taken_PA.ravel()
    entries = np.repeat(np.arange(len(count_Q)), count_Q)
    numbers = np.arange(len(entries)) - _exclusive_sums(count_Q)[entries]
    first_PA = np.cumsum(taken_PA, axis=0) - taken_PA + offsets_A1[:-1]
    arrived_rows = arrived_PA.ravel()[entries] + numbers
    multiplied_rows = first_PA.ravel()[entries] + numbers
    arrive_W, leave_R = np.full(offsets_A1[-1], -1), np.full(leave_length, -1)
    arrive_W[multiplied_rows], leave_R[arrived_rows] = arrived_rows, multiplied_rows
    return arrive_W, leave_R


def sent_rows(experts_NGBS: np.ndarray, taker_B: np.ndarray, takers: int, stored: int) -> np.ndarray:
    """Count the rows that each data-parallel rank sends to each expert in each of G micro-batches, int64 [N, G, takers, K].

    experts_NGBS: expert of each token. taker_B: data-parallel rank that trains on each sequence. takers: number of these ranks.
    stored: K."""
    segments, micro_batches = experts_NGBS.shape[:2]
    bins = experts_NGBS + stored * taker_B[:, None]  # a bin for each pair of rank and expert
    counts = [np.bincount(bins_T, minlength=takers * stored) for bins_T in bins.reshape(segments * micro_batches, -1)]
    return np.stack(counts).reshape(segments, micro_batches, takers, stored)


@dataclass(frozen=True)
class Receivers:
    """Ranks that receive the rows counted by `sent_rows`, which its methods take as sent_NGDK: rows that each of D data-parallel
    ranks sends to each of K experts, in each of N segments and G micro-batches. groups: number of groups; data-parallel ranks are
    numbered by group, expert rank, replica. holder_K: for each expert, which of the P expert ranks of its group stores it."""

    layout: DispatchLayout
    groups: int
    holder_K: np.ndarray

    def accepted(self, sent_NGDK: np.ndarray, room: Capacity) -> np.ndarray:
        """Return how many of the sent rows fit both limits of `room`, in the same shape; rows of earlier senders go first. In the
        dropless layout all experts of a rank share the limit on arriving rows: of one sender, earlier experts go first."""
        by_sender = self._by_sender(sent_NGDK if room.sent is None else np.minimum(sent_NGDK, room.sent))
        if self.layout != "dropless":
            return _rows_within(room.arrived, by_sender, axis=3).reshape(sent_NGDK.shape)  # over the P senders
        accepted_rows = np.empty_like(by_sender)
        for peer in range(by_sender.shape[3]):
            is_of_peer_K = self.holder_K == peer
            arriving_rows = np.moveaxis(by_sender[..., is_of_peer_K], 3, -2)  # N G groups replicas P K of the peer
            in_order = arriving_rows.reshape(*arriving_rows.shape[:-2], -1)  # by sender, then by expert
            fitting_rows = _rows_within(room.arrived, in_order, axis=-1).reshape(arriving_rows.shape)
            accepted_rows[..., is_of_peer_K] = np.moveaxis(fitting_rows, -2, 3)
        return accepted_rows.reshape(sent_NGDK.shape)

    def arrived(self, sent_NGDK: np.ndarray) -> np.ndarray:
        """Return the number of rows that arrive for each expert [N, G, groups, replicas, K], or in the dropless layout on each of
        the P expert ranks of a group [N, G, groups, replicas, P]."""
        arrived = self._by_sender(sent_NGDK).sum(axis=3)
        if self.layout != "dropless":
            return arrived
        peers = range(self.holder_K.max() + 1)
        return np.stack([arrived[..., self.holder_K == peer].sum(axis=-1) for peer in peers], axis=-1)

    def _by_sender(self, sent_NGDK: np.ndarray) -> np.ndarray:
        """Reshape [N, G, D, K] to [N, G, groups, P, replicas, K]."""
        segments, micro_batches, _, stored = sent_NGDK.shape
        return sent_NGDK.reshape(segments, micro_batches, self.groups, self.holder_K.max() + 1, -1, stored)


def _rows_within(limit: int, counts: np.ndarray, axis: int) -> np.ndarray:
    """Cut counts of rows so that their sum along an axis is at most `limit`: earlier counts stay whole, later ones get the rest."""
    return np.diff(np.minimum(np.cumsum(counts, axis=axis), limit), prepend=0, axis=axis)


_ADVICE = "for this batch (routing.table=balanced lowers what is needed), or parallel.overflow to drop"


def check_room(rows: np.ndarray, limit: int, even: float, names: Sequence[str], factor: Factor) -> None:
    """Raise CapacityError if any number of `rows` exceeds `limit`. The message names the factor that would be enough.

    Args:
        rows: row counts, segments first: of each sender and expert [N, …, K], or of each receiver.
        limit: most rows in one count, as the configured factor gives it.
        even: number of rows under an even load, which the factor multiplies.
        names: names of the N segments.
        factor: key from which the limit follows: "capacity_factor" for `sent_rows`, "arrival_factor" for `Receivers.arrived`.
    """
    most = int(rows.max())
    if most > limit:
        segment, *_, expert = np.unravel_index(rows.argmax(), rows.shape)
        problem = f"{most} rows arrive where {limit} have room"
        if factor == "capacity_factor":
            problem = f"a rank has {most} rows for expert {expert}, whose capacity is {limit}"
        needed = math.ceil(round(100 * most / even, 6)) / 100  # up to two decimals; `round` takes away errors of floats
        raise CapacityError(f"{names[int(segment)]}: {problem}; set parallel.{factor} to {needed:g} or more {_ADVICE}")
