"""Routing plans of a rank among several on CPUs. Every rank has the whole batch and asks no other.

Shape suffixes: N segments of all RRE layers, G micro-batches, B sequences, S sequence, K experts of a segment.
"""

from __future__ import annotations

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.ranks.layout import Layout, data_rank_of, entries_of_segments, share_of, takers_of_group
from pangu_sigma.rre.plan import Planner, UpdatePlan


class RankPlanner(Planner):
    """Maker of the routing plans of a rank. Its experts compute the tokens of all ranks of its expert group, in the order of the
    ranks: `ranks/experts.py` brings them together."""

    def __init__(self, config: Config, rank: int):
        super().__init__(config)
        self._kinds, held = config.model.routed, share_of(config, rank).held
        self.stored = [_row_of_each(held[kind], config.stored_experts(kind)) for kind in self._kinds]
        self.entries = entries_of_segments(config)
        self._peers = [data_rank_of(config, peer) for peer in Layout(config.parallel).peers(rank, "expert")]
        self._group = takers_of_group(config, rank)

    def plan(self, experts_NGBS: np.ndarray, taker_B: np.ndarray) -> UpdatePlan:
        """Return the plans of one update. experts_NGBS: as in `Planner.plan`. taker_B: data-parallel index of each sequence
        (`data_rank_of_sequences`)."""
        computed = np.concatenate([np.flatnonzero(taker_B == taker) for taker in self._peers])
        of_group = experts_NGBS[:, :, np.isin(taker_B, self._group)]
        # every copy of a common expert is updated alike, if any group has tokens for it
        counted = [experts_NGBS[n] if kind == "common" else of_group[n] for n, kind in enumerate(self._kinds)]
        return self.plan_tokens(experts_NGBS[:, :, computed], counted)


def make_planner(config: Config, rank: int) -> Planner:
    """Return the maker of the routing plans of a process, which may be one of several ranks."""
    return Planner(config) if config.parallel.ranks == 1 else RankPlanner(config, rank)


def _row_of_each(held: np.ndarray, stored: int) -> np.ndarray:
    """Return the row of each of the K experts in a store of those that are held, -1 for the others, [K]."""
    row_K = np.full(stored, -1)
    row_K[held] = np.arange(len(held))
    return row_K
