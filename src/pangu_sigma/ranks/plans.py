"""Routing plans of a rank among several on CPUs. Every rank has the whole batch and asks no other.

Shape suffixes: N segments of all RRE layers, G micro-batches, B sequences, S sequence.
"""

from __future__ import annotations

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.ranks.layout import Layout, data_rank_of, share_of, takers_of_group
from pangu_sigma.rre.plan import Planner, RoutingPlan, plan_segment


class RankPlanner(Planner):
    """Maker of the routing plans of a rank. The rank's experts compute the tokens of all ranks of its expert group, which
    `ranks/experts.py` gathers in the order of the ranks."""

    def __init__(self, config: Config, rank: int):
        super().__init__(share_of(config, rank).routed)
        # data-parallel indices of the ranks whose tokens this rank's experts compute, and of all ranks of its group
        self._expert_takers = [data_rank_of(config, peer) for peer in Layout(config.parallel).peers(rank, "expert")]
        self._group_takers = takers_of_group(config, rank)

    def plan(self, experts_NGBS: np.ndarray, taker_B: np.ndarray) -> list[RoutingPlan]:
        """Return the plan of each segment. experts_NGBS: as in `Planner.plan`. taker_B: data-parallel index of the rank that trains
        on each sequence (`data_rank_of_sequences`)."""
        # the sequences whose tokens this rank's experts compute, rank by rank as they are gathered
        computed = np.concatenate([np.flatnonzero(taker_B == taker) for taker in self._expert_takers])
        in_group_B = np.isin(taker_B, self._group_takers)
        plans = []
        for segment, experts_GBS in zip(self.routed, experts_NGBS, strict=True):
            # every group updates its copy of a common expert alike, if any group has tokens for the expert
            updating_GBS = experts_GBS if segment.kind == "common" else experts_GBS[:, in_group_B]
            plans.append(plan_segment(segment, experts_GBS[:, computed], updating_GBS))
        return plans


def make_planner(config: Config, rank: int) -> Planner:
    """Return the maker of the routing plans of a process, which may be one of several ranks."""
    return Planner(share_of(config, 0).routed) if config.parallel.ranks == 1 else RankPlanner(config, rank)
