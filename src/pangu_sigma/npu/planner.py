"""Routing plans of a rank of NPUs, made from the experts of all tokens of a batch. Every rank has the whole batch, and asks no
other.

Shape suffixes: N segments of all RRE layers, G micro-batches, B sequences, S sequence, T tokens, K experts stored in a segment, D
data-parallel ranks, A entries of the active list of a rank, P expert ranks of a group.
"""

from __future__ import annotations

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.npu.capacity import ExchangePlan, Receivers, check_room, plan_micro_batch, sent_rows
from pangu_sigma.npu.row_counts import Room, dispatch_layout, even_rows_received, room_of
from pangu_sigma.ranks.layout import Layout, active_in_group, data_rank_of, share_of, takers_of_group
from pangu_sigma.rre.plan import Planner, RoutingPlan, active_list
from pangu_sigma.sections import Segment


class ExchangePlanner(Planner):
    """Maker of one rank's routing plans, in the dispatch layout of its chip, from the experts of a batch's tokens."""

    def __init__(self, config: Config, rank: int, room: Room | None = None):
        """room: limits on exchanged rows; None for the configuration's."""
        parallel, grid = config.parallel, Layout(config.parallel)
        self._config, self._room, self._layout = config, room or room_of(config), dispatch_layout(config)
        self._peer = grid.coordinates(rank).expert
        of_peers = [share_of(config, peer).routed for peer in grid.peers(rank, "expert")]
        super().__init__(of_peers[self._peer])
        self._segments = list(zip(*of_peers, strict=True))  # for each segment, the experts that each peer stores of it
        self._receivers = {kind: self._receivers_of(kind) for kind in config.model.kinds}
        self._taker, self._group = data_rank_of(config, rank), takers_of_group(config, rank)
        self._takers, group_size = parallel.stage_ranks // parallel.tensor, len(self._group)
        # data-parallel ranks whose rows come to this rank: the ranks of its group with the same place on the axis `data`
        self._senders = self._group[0] + np.arange(self._taker % parallel.data, group_size, parallel.data)

    def plan(self, experts_NGBS: np.ndarray, taker_B: np.ndarray) -> list[RoutingPlan]:
        """Return the `ExchangePlan` of each segment, in the order of the network.

        experts_NGBS: expert of each token of the whole batch, in G micro-batches. taker_B: data-parallel rank that trains on each
        sequence (`data_rank_of_sequences`).

        Raises CapacityError, on every rank or on none, if the batch does not fit and `parallel.overflow` is refuse.
        """
        plans: dict[int, RoutingPlan] = {}
        is_own_B = taker_B == self._taker
        tokens = np.count_nonzero(is_own_B) * experts_NGBS.shape[-1]
        for kind in self._config.model.kinds:
            numbers = [n for n, segment_kind in enumerate(self._config.model.routed) if segment_kind == kind]
            sent_NGDK = sent_rows(experts_NGBS[numbers], taker_B, self._takers, self._config.stored_experts(kind))
            self._refuse_overflow(kind, numbers, sent_NGDK, tokens)
            fit_NGDK = self._receivers[kind].accepted(sent_NGDK, self._room[kind])
            # sequences whose tokens make experts of this group active. A common expert has a copy in every group, and all copies
            # are updated alike, so its tokens of any group count
            activates_B = np.isin(taker_B, self._group) | (kind == "common")
            for n, sent_GDK, fit_GDK in zip(numbers, sent_NGDK, fit_NGDK, strict=True):
                ids_GT = experts_NGBS[n][:, is_own_B].reshape(experts_NGBS.shape[1], -1)
                active, fit_GPK = experts_NGBS[n][:, activates_B], fit_GDK[:, self._senders]
                plans[n] = self._plan(n, ids_GT, active, fit_GPK, int((sent_GDK - fit_GDK).sum()))
        return [plans[n] for n in range(len(plans))]

    def _plan(self, n: int, ids_GT: np.ndarray, active: np.ndarray, fit_GPK: np.ndarray, dropped: int) -> RoutingPlan:
        """Return the plan of segment n, for all micro-batches.

        ids_GT: experts of this rank's tokens. active: experts, in any shape and repeated, that tokens make active.
        fit_GPK: number of rows that fit, from each rank of the group to each expert. dropped: number of rows that do not fit."""
        segments, peer = self._segments[n], self._peer  # the segment, with the experts that each peer stores of it
        room, lists = self._room[segments[0].kind], []
        for segment in segments:
            rows = segment.row_of[active]
            lists.append(active_list(segment, rows[rows >= 0]))  # at -1 another peer stores the expert
        # expert at each entry of each peer's list. An unused entry is one past the last row, where the -1 stands
        ids_PA = np.stack([np.append(s.held, -1)[active_A] for s, (active_A, _) in zip(segments, lists, strict=True)])
        pairs = zip(ids_GT, fit_GPK, strict=True)
        micro_batches = [plan_micro_batch(self._layout, ids_T, fit_PK, ids_PA, peer, room) for ids_T, fit_PK in pairs]
        fields = (np.stack(arrays).astype(np.int32) for arrays in zip(*micro_batches, strict=True))
        return ExchangePlan(*lists[peer], *fields, dropped=dropped)

    def _refuse_overflow(self, kind: Segment, numbers: list[int], sent_NGDK: np.ndarray, tokens: int) -> None:
        """Raise CapacityError if rows have no room and `parallel.overflow` does not let them be dropped.

        numbers: all segments of the kind. sent_NGDK: result of `sent_rows` for them. tokens: a rank's tokens in a micro-batch."""
        config, room = self._config, self._room[kind]
        if config.parallel.overflow != "refuse":
            return
        names = [config.model.segment_name(n) for n in numbers]
        if room.sent is not None:
            check_room(sent_NGDK, room.sent, tokens / active_in_group(config, kind), names, "capacity_factor")
        arrived, even = self._receivers[kind].arrived(sent_NGDK), even_rows_received(config, kind)
        check_room(arrived, room.arrived, even, names, "arrival_factor")

    def _receivers_of(self, kind: Segment) -> Receivers:
        """Return the receivers of the rows for experts of a kind. The ranks of a group divide each domain's own experts, or all
        common experts, into equal ranges."""
        stored, peers = self._config.stored_experts(kind), self._config.parallel.expert
        divided_experts = self._config.model.experts_per_domain if kind == "own" else stored
        holder_K = np.arange(stored) % divided_experts // (divided_experts // peers)
        return Receivers(self._layout, self._config.parallel.groups, holder_K)
