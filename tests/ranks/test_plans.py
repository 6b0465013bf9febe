"""Plans of CPU ranks: together they are the plan of the whole batch."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.plan_player import Gathering
from helpers.rank_cases import (
    Case,
    assert_active_are_those_of_the_batch,
    assert_all_compute_what_one_computes_alone,
    cases,
    config_of,
)
from hypothesis import given, settings

from pangu_sigma.ranks.layout import Layout, data_rank_of, data_rank_of_sequences, share_of
from pangu_sigma.ranks.plans import make_planner
from pangu_sigma.rre.plan import RoutingPlan


def planned(case: Case) -> dict[int, list[RoutingPlan]]:
    return {rank: make_planner(case.config, rank).plan(case.experts, case.taker_B) for rank in case.ranks}


@pytest.mark.parametrize("layout", [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2), (4, 4, 1)])
def test_every_sequence_is_taken_once_by_ranks_that_store_its_experts(layout):
    config = config_of(*layout)
    taken = data_rank_of_sequences(config)
    ranks = range(config.parallel.ranks)
    assert sorted({data_rank_of(config, r) for r in ranks}) == sorted(set(taken.tolist()))
    assert len(set(np.bincount(taken).tolist())) == 1
    experts = {r: set(share_of(config, r).routed[0].held.tolist()) for r in ranks}
    for block, set_of_block in enumerate(np.arange(4) % 4):
        for taker in taken[block * len(taken) // 4 : (block + 1) * len(taken) // 4]:
            rank = next(r for r in ranks if data_rank_of(config, r) == taker)
            assert set_of_block in share_of(config, rank).sets
    for rank in ranks:
        group = [experts[r] for r in Layout(config.parallel).peers(rank, "expert")]
        assert sum(map(len, group)) == len(set.union(*group)) == config.experts // layout[0]


@given(cases())
def test_active_experts_of_all_ranks_are_those_of_the_batch(case: Case):
    assert_active_are_those_of_the_batch(case, planned(case))


@settings(max_examples=50)
@given(cases())
def test_all_ranks_together_compute_what_one_computes_alone(case: Case):
    updates, grid = planned(case), Layout(case.config.parallel)
    assert {plan.dropped for update in updates.values() for plan in update} == {0}
    assert_all_compute_what_one_computes_alone(
        case, updates, lambda plans, g: Gathering(grid, plans, g), lambda rank, g, n: case.own(rank)[n, g]
    )
