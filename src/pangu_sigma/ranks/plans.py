"""Routing plans of one rank, made from the experts of all tokens of a batch. Every rank has the whole batch and asks no other.

Shape suffixes: N segments of all RRE layers, G micro-batches, B sequences, S sequence, T tokens, K experts stored in a segment, A
entries of the active list of a rank, P expert ranks of a group, C capacity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.npu.capacity import (
    Capacity,
    DispatchLayout,
    Receivers,
    check_arrived,
    check_sent,
    exchange_plans,
    sent_rows,
)
from pangu_sigma.ranks.layout import (
    Layout,
    Room,
    active_entries,
    active_in_group,
    data_rank_of,
    entries_of_segments,
    even_rows_received,
    share_of,
)
from pangu_sigma.rre.plan import RoutingPlan, active_lists, plan_rows
from pangu_sigma.sections import Segment


@dataclass(frozen=True)
class UpdatePlan:
    """Routing plans of one update for a rank.

    plans: one for each micro-batch.
    used_NA: number of tokens that the whole group has for each entry of the active list, in all micro-batches together; for common
        experts, of which each group has a copy, those of all groups.
    dropped: number of rows of the whole batch that exceed the capacities, so that their tokens have no expert.
    """

    plans: Sequence[RoutingPlan]
    used_NA: np.ndarray
    dropped: int


class Planner:
    """Maker of one rank's routing plans, in one dispatch layout, from the experts of a batch's tokens."""

    def __init__(self, config: Config, rank: int, layout: DispatchLayout):
        parallel = config.parallel
        self.layout = layout
        self._of_kinds = {kind: _PlannerOfKind(config, rank, layout, kind) for kind in config.model.kinds}
        self._taker = data_rank_of(config, rank)
        takers = parallel.expert * parallel.data
        self.group = np.arange(takers) + self._taker // takers * takers
        """Data-parallel indices (as `data_rank_of`) of the rank's group."""

    def needed_capacity(self, experts_NGBS: np.ndarray, taker_B: np.ndarray) -> dict[Segment, int]:
        """Return the most rows that any rank sends to one expert, by the kind of its segment: the capacity that these tokens need.

        experts_NGBS: expert of each token of G micro-batches. taker_B: as in `plan`.
        """
        return {kind: int(each.sent(experts_NGBS, taker_B).max()) for kind, each in self._of_kinds.items()}

    def own(self, taker_B: np.ndarray) -> np.ndarray:
        """Return the indices of the sequences of a batch that this rank trains on, ascending. taker_B: as in `plan`."""
        return np.flatnonzero(taker_B == self._taker)

    def plan(self, experts_NGBS: np.ndarray, taker_B: np.ndarray, room: Room) -> UpdatePlan:
        """Return the plans of one update. experts_NGBS: the expert of each token of the whole batch, in G micro-batches.

        taker_B: data-parallel index of each sequence (`data_rank_of_sequences`). room: limits on exchanged rows.

        Raises CapacityError, on every rank or on none, if the batch does not fit and `parallel.overflow` is refuse.
        """
        made = []
        for kind, each in self._of_kinds.items():
            # every copy of a common expert is updated alike, if any group has tokens for it
            users_B = np.isin(taker_B, self.group) | (kind == "common")
            made.append((each.numbers, each.plan(experts_NGBS, taker_B, self.own(taker_B), users_B, room[kind])))
        plans = [_joined([(n, update.plans[g]) for n, update in made]) for g in range(experts_NGBS.shape[1])]
        used_NA = _in_order([(n, update.used_NA) for n, update in made])
        return UpdatePlan(plans, used_NA, sum(update.dropped for _, update in made))


class _PlannerOfKind:
    """Part of a `Planner` that plans the segments of one kind; numbers: theirs among those of all RRE layers."""

    def __init__(self, config: Config, rank: int, layout: DispatchLayout, kind: Segment):
        parallel, grid, model = config.parallel, Layout(config.parallel), config.model
        self._config, self._kind, self.layout = config, kind, layout
        self.numbers = [n for n, other in enumerate(model.routed) if other == kind]
        self._names = [model.segment_name(n) for n in self.numbers]
        self._stored, self._peer = config.stored_experts(kind), grid.coordinates(rank).expert
        self._held_PK = np.stack([share_of(config, peer).held[kind] for peer in grid.peers(rank, "expert")])
        self._row_PK = np.full((parallel.expert, self._stored), -1)  # of each expert in the store of each peer
        np.put_along_axis(self._row_PK, self._held_PK, np.arange(self._held_PK.shape[1])[None], axis=1)
        self._entries, self._longest = active_entries(config, kind), max(entries_of_segments(config), default=0)
        alike = model.experts_per_domain if kind == "own" else self._stored
        holder_K = np.arange(self._stored) % alike // (alike // parallel.expert)  # equally many each, in order
        self._receivers = Receivers(layout, parallel.groups, holder_K)
        self._takers, taker = parallel.stage_ranks // parallel.tensor, data_rank_of(config, rank)
        group = parallel.expert * parallel.data
        # those whose rows come to this rank
        self._senders = taker // group * group + np.arange(taker % parallel.data, group, parallel.data)

    def sent(self, experts_NGBS: np.ndarray, taker_B: np.ndarray) -> np.ndarray:
        """Return the rows that ranks send to experts of these segments, as `sent_rows`. Arguments: as in `Planner.plan`."""
        return sent_rows(experts_NGBS[self.numbers], taker_B, self._takers, self._stored)

    def plan(
        self, experts_NGBS: np.ndarray, taker_B: np.ndarray, own: np.ndarray, users_B: np.ndarray, room: Capacity
    ) -> UpdatePlan:
        """Return the plans of these segments, as `Planner.plan` does. own: sequences of this rank. users_B: True for those whose
        tokens are counted in `used_NA`."""
        of_kind = experts_NGBS[self.numbers]
        layers, micro = of_kind.shape[:2]
        counted_NT, own_NGT = of_kind[:, :, users_B].reshape(layers, -1), of_kind[:, :, own].reshape(layers, micro, -1)
        active_PNA = np.stack([self._active(row_K[counted_NT]) for row_K in self._row_PK])
        row_K, active_NA = self._row_PK[self._peer], active_PNA[self._peer]
        used_NA = np.stack([_tokens(rows_T, a) for rows_T, a in zip(row_K[counted_NT], active_NA, strict=True)])
        plans: Sequence[RoutingPlan]
        if self.layout == "local":
            plans, dropped = plan_rows(row_K[own_NGT], active_NA), 0
        else:
            sent = self.sent(experts_NGBS, taker_B)
            kept = self._kept(sent, room, own_NGT.shape[-1])
            no_expert = np.full((len(self._held_PK), 1), -1)  # at unused entries
            ids_PNA = np.take_along_axis(np.hstack([self._held_PK, no_expert])[:, None], active_PNA, axis=2)
            own_rows = kept[:, :, self._senders]
            plans = exchange_plans(self.layout, own_NGT, ids_PNA, active_NA, self._peer, own_rows, room)
            dropped = int((sent - kept).sum())
        longer = ((0, 0), (0, self._longest - self._entries))
        padded = np.pad(active_NA, longer, constant_values=self._held_PK.shape[1]).astype(np.int32)
        plans = [replace(p, active_NA=padded, offsets_NA1=np.pad(p.offsets_NA1, longer, "edge")) for p in plans]
        return UpdatePlan(plans, np.pad(used_NA, longer), dropped)

    def _kept(self, sent_NGDK: np.ndarray, room: Capacity, tokens: int) -> np.ndarray:
        """Return the numbers of rows of the whole batch that find room. tokens: tokens of a rank."""
        if self._config.parallel.overflow == "refuse":
            if room.sent is not None:
                check_sent(sent_NGDK, room.sent, tokens, active_in_group(self._config, self._kind), self._names)
            if room.arrived is not None:
                even = even_rows_received(self._config, self.layout, self._kind)
                check_arrived(self._receivers.arrived(sent_NGDK), room.arrived, even, self._names)
        return self._receivers.kept(sent_NGDK, room)

    def _active(self, rows_NT: np.ndarray) -> np.ndarray:
        """Return the active list of each segment. rows_NT: row of each token's expert in a rank's store, -1 if it is not there."""
        stored_N, entries_N = ([number] * len(rows_NT) for number in (self._held_PK.shape[1], self._entries))
        return active_lists([rows_T[rows_T >= 0] for rows_T in rows_NT], stored_N, entries_N)


def _joined(parts: list[tuple[list[int], RoutingPlan]]) -> RoutingPlan:
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
