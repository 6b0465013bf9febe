"""Routing plans of one rank, made from the experts of all tokens of a batch. Every rank has the whole batch and asks no other.

Shape suffixes: N RRE layers, G micro-batches, B sequences, S sequence, T tokens, K experts stored in a layer, A entries of the
active list of a rank, P expert ranks of a group, C capacity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.parallel.layout import (
    Layout,
    active_in_group,
    data_rank_of,
    entries_of_segments,
    even_rows_received,
    share_of,
)
from pangu_sigma.rre.capacity import (
    Capacity,
    DispatchLayout,
    Receivers,
    check_arrived,
    check_sent,
    exchange_plans,
    sent_rows,
)
from pangu_sigma.rre.plan import RoutingPlan, active_lists, plan_rows


@dataclass(frozen=True)
class UpdatePlan:
    """Routing plans of one update for a rank.

    plans: one for each micro-batch.
    used_NA: number of tokens that the whole group has for each entry of the active list, in all micro-batches together.
    dropped: number of rows of the whole batch that exceed the capacities, so that their tokens have no expert.
    """

    plans: Sequence[RoutingPlan]
    used_NA: np.ndarray
    dropped: int


class Planner:
    """Maker of one rank's routing plans, in one dispatch layout, from the experts of a batch's tokens."""

    def __init__(self, config: Config, rank: int, layout: DispatchLayout):
        parallel = config.parallel
        grid = Layout(parallel)
        self._config = config
        self.layout = layout
        self._peer = grid.coordinates(rank).expert
        self._held_PK = np.stack([share_of(config, peer).held for peer in grid.peers(rank, "expert")])
        self._row_PK = np.full((parallel.expert, config.experts), -1)  # of each expert in the store of each peer
        np.put_along_axis(self._row_PK, self._held_PK, np.arange(self._held_PK.shape[1])[None], axis=1)
        self._entries_N = entries_of_segments(config)
        self._common_N = [config.model.common_experts * (kind == "common") for kind in config.model.routed]
        stored = config.model.experts_per_domain  # of each domain; its ranks have equally many, in order
        holder_K = np.arange(config.experts) % stored // (stored // parallel.expert)
        self._receivers = Receivers(layout, parallel.groups, holder_K)
        self._taker = data_rank_of(config, rank)
        self._takers = parallel.stage_ranks // parallel.tensor
        takers = parallel.expert * parallel.data
        self.group = np.arange(takers) + self._taker // takers * takers
        """Data-parallel indices (as `data_rank_of`) of the rank's group."""
        self._senders = self.group[self._taker % parallel.data :: parallel.data]  # those whose rows come to this rank

    def needed_capacity(self, experts_NGBS: np.ndarray, taker_B: np.ndarray) -> int:
        """Return the most rows that any rank sends to one expert: the capacity that these tokens need.

        experts_NGBS: expert of each token of G micro-batches. taker_B: as in `plan`.
        """
        return int(sent_rows(experts_NGBS, taker_B, self._takers, self._config.experts).max())

    def own(self, taker_B: np.ndarray) -> np.ndarray:
        """Return the indices of the sequences of a batch that this rank trains on, ascending. taker_B: as in `plan`."""
        return np.flatnonzero(taker_B == self._taker)

    def plan(self, experts_NGBS: np.ndarray, taker_B: np.ndarray, room: Capacity) -> UpdatePlan:
        """Return the plans of one update. experts_NGBS: the expert of each token of the whole batch, in G micro-batches.

        taker_B: data-parallel index of each sequence (`data_rank_of_sequences`). room: limits on exchanged rows.

        Raises CapacityError, on every rank or on none, if the batch does not fit and `parallel.overflow` is refuse.
        """
        layers, micro = experts_NGBS.shape[:2]
        group_NT = experts_NGBS[:, :, np.isin(taker_B, self.group)].reshape(layers, -1)
        own_NGT = experts_NGBS[:, :, self.own(taker_B)].reshape(layers, micro, -1)
        active_PNA = np.stack([self._active(self._rows(row_K, group_NT)) for row_K in self._row_PK])
        row_K, active_NA = self._row_PK[self._peer], active_PNA[self._peer]
        rows_NT = self._rows(row_K, group_NT)
        used_NA = np.stack([_tokens(rows_T, a) for rows_T, a in zip(rows_NT, active_NA, strict=True)])
        if self.layout == "local":
            return UpdatePlan(plan_rows(self._rows(row_K, own_NGT), active_NA), used_NA, 0)
        sent = sent_rows(experts_NGBS, taker_B, self._takers, self._config.experts)
        kept = self._kept(sent, room, own_NGT.shape[-1])
        no_expert = np.full((len(self._held_PK), 1), -1)  # at unused entries
        ids_PNA = np.take_along_axis(np.hstack([self._held_PK, no_expert])[:, None], active_PNA, axis=2)
        plans = exchange_plans(self.layout, own_NGT, ids_PNA, active_NA, self._peer, kept[:, :, self._senders], room)
        return UpdatePlan(plans, used_NA, int((sent - kept).sum()))

    def _kept(self, sent_NGDK: np.ndarray, room: Capacity, tokens: int) -> np.ndarray:
        """Return the numbers of rows of the whole batch that find room. tokens: tokens of a rank."""
        if self._config.parallel.overflow == "refuse":
            if room.sent is not None:
                check_sent(sent_NGDK, room.sent, tokens, active_in_group(self._config))
            if room.arrived is not None:
                even = even_rows_received(self._config, self.layout)
                check_arrived(self._receivers.arrived(sent_NGDK), room.arrived, even)
        return self._receivers.kept(sent_NGDK, room)

    def _rows(self, row_K: np.ndarray, experts_N: np.ndarray) -> np.ndarray:
        """Return the row of each expert in a rank's store, -1 if it is not there. A common segment's experts are their own rows."""
        return np.stack(
            [experts if common else row_K[experts] for experts, common in zip(experts_N, self._common_N, strict=True)]
        )

    def _active(self, rows_NT: np.ndarray) -> np.ndarray:
        """Return the active list of each segment. rows_NT: row of each token's expert in a rank's store, -1 if it is not there."""
        stored_N = [common or self._held_PK.shape[1] for common in self._common_N]
        return active_lists([rows_T[rows_T >= 0] for rows_T in rows_NT], stored_N, self._entries_N)


def _tokens(rows_T: np.ndarray, active_A: np.ndarray) -> np.ndarray:
    """Return the number of tokens of each entry of an active list, 0 for unused ones. rows_T: row of each token's expert, or -1."""
    return np.bincount(rows_T[rows_T >= 0], minlength=active_A.max() + 1)[active_A]
