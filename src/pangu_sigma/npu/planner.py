"""Routing plans of a rank of NPUs, made from the experts of all tokens of a batch. Every rank has the whole batch, and asks no
other.

Shape suffixes: N segments of all RRE layers, G micro-batches, B sequences, S sequence, T tokens, K experts stored in a segment, D
data-parallel ranks, A entries of the active list of a rank, P expert ranks of a group.
"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.npu.capacity import (
    Capacity,
    ExchangePlan,
    Receivers,
    check_arrived,
    check_sent,
    exchange_plans,
    sent_rows,
)
from pangu_sigma.npu.rows import Room, dispatch_layout, even_rows_received, room_of
from pangu_sigma.ranks.layout import (
    Layout,
    active_entries,
    active_in_group,
    data_rank_of,
    entries_of_segments,
    share_of,
    takers_of_group,
)
from pangu_sigma.rre.plan import UpdatePlan, active_lists
from pangu_sigma.sections import Segment


class ExchangePlanner:
    """Maker of one rank's routing plans, in the dispatch layout of its chip, from the experts of a batch's tokens."""

    def __init__(self, config: Config, rank: int, room: Room | None = None):
        """room: limits on exchanged rows; None for those of the configuration."""
        room = room or room_of(config)
        self._of_kinds = {kind: _OfKind(config, rank, kind, room[kind]) for kind in config.model.kinds}
        self._taker, self._group = data_rank_of(config, rank), takers_of_group(config, rank)

    def plan(self, experts_NGBS: np.ndarray, taker_B: np.ndarray) -> UpdatePlan:
        """Return the plans of one update. experts_NGBS: the expert of each token of the whole batch, in G micro-batches.

        taker_B: data-parallel index of each sequence (`data_rank_of_sequences`).

        Raises CapacityError, on every rank or on none, if the batch does not fit and `parallel.overflow` is refuse.
        """
        made = []
        for kind, each in self._of_kinds.items():
            # every copy of a common expert is updated alike, if any group has tokens for it
            users_B = np.isin(taker_B, self._group) | (kind == "common")
            made.append((each.numbers, each.plan(experts_NGBS, taker_B, taker_B == self._taker, users_B)))
        plans = [_joined([(n, plans[g]) for n, (plans, *_) in made]) for g in range(experts_NGBS.shape[1])]
        used_NA = _in_order([(n, used_NA) for n, (_, used_NA, _) in made])
        return UpdatePlan(plans, used_NA, sum(dropped for _, (*_, dropped) in made))


class _OfKind:
    """Part of an `ExchangePlanner` that plans the segments of one kind; numbers: theirs among those of all RRE layers."""

    def __init__(self, config: Config, rank: int, kind: Segment, room: Capacity):
        parallel, grid, model = config.parallel, Layout(config.parallel), config.model
        self._config, self._kind, self._room, self._layout = config, kind, room, dispatch_layout(config)
        self.numbers = [n for n, other in enumerate(model.routed) if other == kind]
        self._names = [model.segment_name(n) for n in self.numbers]
        self._stored, self._peer = config.stored_experts(kind), grid.coordinates(rank).expert
        self._held_PK = np.stack([share_of(config, peer).held[kind] for peer in grid.peers(rank, "expert")])
        self._row_PK = np.full((parallel.expert, self._stored), -1)  # of each expert in the store of each peer
        np.put_along_axis(self._row_PK, self._held_PK, np.arange(self._held_PK.shape[1])[None], axis=1)
        self._entries, self._longest = active_entries(config, kind), max(entries_of_segments(config), default=0)
        alike = model.experts_per_domain if kind == "own" else self._stored
        holder_K = np.arange(self._stored) % alike // (alike // parallel.expert)  # equally many each, in order
        self._receivers = Receivers(self._layout, parallel.groups, holder_K)
        self._takers, taker = parallel.stage_ranks // parallel.tensor, data_rank_of(config, rank)
        group = parallel.expert * parallel.data
        # those whose rows come to this rank
        self._senders = taker // group * group + np.arange(taker % parallel.data, group, parallel.data)

    def plan(
        self, experts_NGBS: np.ndarray, taker_B: np.ndarray, own_B: np.ndarray, users_B: np.ndarray
    ) -> tuple[list[ExchangePlan], np.ndarray, int]:
        """Return plans, used_NA and dropped rows of these segments, as in an `UpdatePlan`. own_B: True for the sequences of this
        rank. users_B: True for those whose tokens are counted in used_NA."""
        of_kind = experts_NGBS[self.numbers]
        layers, micro = of_kind.shape[:2]
        own_NGT = of_kind[:, :, own_B].reshape(layers, micro, -1)
        counted_NT = of_kind[:, :, users_B].reshape(layers, -1)
        active_PNA = np.stack([self._active(row_K[counted_NT]) for row_K in self._row_PK])
        active_NA = active_PNA[self._peer]
        rows_NT = self._row_PK[self._peer][counted_NT]
        used_NA = np.stack([_tokens(rows_T, a) for rows_T, a in zip(rows_NT, active_NA, strict=True)])
        no_expert = np.full((len(self._held_PK), 1), -1)  # at unused entries
        ids_PNA = np.take_along_axis(np.hstack([self._held_PK, no_expert])[:, None], active_PNA, axis=2)
        sent = sent_rows(of_kind, taker_B, self._takers, self._stored)
        kept = self._kept(sent, own_NGT.shape[-1])
        own_rows = kept[:, :, self._senders]
        plans = exchange_plans(self._layout, own_NGT, ids_PNA, active_NA, self._peer, own_rows, self._room)
        longer = ((0, 0), (0, self._longest - self._entries))
        padded = np.pad(active_NA, longer, constant_values=self._held_PK.shape[1]).astype(np.int32)
        plans = [replace(p, active_NA=padded, offsets_NA1=np.pad(p.offsets_NA1, longer, "edge")) for p in plans]
        return plans, np.pad(used_NA, longer), int((sent - kept).sum())

    def _kept(self, sent_NGDK: np.ndarray, tokens: int) -> np.ndarray:
        """Return the numbers of rows of the whole batch that find room. tokens: tokens of a rank."""
        if self._config.parallel.overflow == "refuse":
            if self._room.sent is not None:
                active = active_in_group(self._config, self._kind)
                check_sent(sent_NGDK, self._room.sent, tokens, active, self._names)
            even = even_rows_received(self._config, self._kind)
            check_arrived(self._receivers.arrived(sent_NGDK), self._room.arrived, even, self._names)
        return self._receivers.kept(sent_NGDK, self._room)

    def _active(self, rows_NT: np.ndarray) -> np.ndarray:
        """Return the active list of each segment. rows_NT: row of each token's expert in a rank's store, -1 if it is not there."""
        stored_N, entries_N = ([number] * len(rows_NT) for number in (self._held_PK.shape[1], self._entries))
        return active_lists([rows_T[rows_T >= 0] for rows_T in rows_NT], stored_N, entries_N)


def _joined(parts: list[tuple[list[int], ExchangePlan]]) -> ExchangePlan:
    """Return the plan of all segments. parts: the numbers of some, and their plan."""
    (_, first), *others = parts
    if not others:
        return first
    names = [field.name for field in fields(first)]
    return replace(first, **{name: _in_order([(n, getattr(plan, name)) for n, plan in parts]) for name in names})


def _in_order(parts: list[tuple[list[int], np.ndarray]]) -> np.ndarray:
    """Return the rows of all parts in the order of their numbers. parts: the numbers of some rows, and these."""
    return np.concatenate([rows for _, rows in parts])[np.argsort(np.concatenate([numbers for numbers, _ in parts]))]


def _tokens(rows_T: np.ndarray, active_A: np.ndarray) -> np.ndarray:
    """Return the number of tokens of each entry of an active list, 0 for unused ones. rows_T: row of each token's expert, or -1."""
    return np.bincount(rows_T[rows_T >= 0], minlength=active_A.max() + 1)[active_A]
