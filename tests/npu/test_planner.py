"""Exchange plans of ranks of NPUs: together they are the plan of the whole batch, as far as its rows find room."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import pytest
from helpers.plan_player import Exchanging, ExchangingDropless
from helpers.rank_cases import (
    LAYERS,
    LENGTH,
    Case,
    assert_active_are_those_of_the_batch,
    assert_all_compute_what_one_computes_alone,
    cases,
    config_of,
)
from hypothesis import given, settings

from pangu_sigma.npu.capacity import Capacity, CapacityError, ExchangePlan
from pangu_sigma.npu.planner import ExchangePlanner
from pangu_sigma.npu.row_counts import Room, capacity, dispatch_layout, equalized_rows
from pangu_sigma.ranks.layout import Layout, active_entries, data_rank_of_sequences
from pangu_sigma.rre.plan import RoutingPlan

CHIPS = ("910a", "910b")
"""One for each layout of the exchanged rows."""


def is_dropless(case: Case) -> bool:
    return dispatch_layout(case.config) == "dropless"


def room_of_case(case: Case) -> Room:
    """Capacity and what may arrive are those of an own expert; of common ones as many rows, which are of more or fewer."""
    kinds = case.config.model.kinds
    if is_dropless(case):
        return {kind: Capacity(None, case.arrived) for kind in kinds}
    sent, arrived = (equalized_rows(case.config, dict.fromkeys(kinds, rows)) for rows in (case.capacity, case.arrived))
    return {kind: Capacity(sent[kind], arrived[kind]) for kind in kinds}


def planned(case: Case) -> dict[int, list[RoutingPlan]]:
    room = room_of_case(case)
    return {rank: ExchangePlanner(case.config, rank, room).plan(case.experts, case.taker_B) for rank in case.ranks}


@given(cases(CHIPS))
def test_active_experts_of_all_ranks_are_those_of_the_batch(case: Case):
    assert_active_are_those_of_the_batch(case, planned(case))


@settings(max_examples=50)
@given(cases(CHIPS))
def test_all_ranks_together_compute_what_one_computes_alone(case: Case):
    """A token without room gets nothing, and gives no gradient."""
    updates, grid, room, lost = planned(case), Layout(case.config.parallel), room_of_case(case), 0
    for update in updates.values():
        for plan, kind in zip(update, case.config.model.routed, strict=True):
            lost += int((plan.inverse_GT < 0).sum())
            rows = room[kind].arrived * (1 if is_dropless(case) else active_entries(case.config, kind))
            assert (plan.offsets_GA1[:, -1] == rows).all() and cast(ExchangePlan, plan).arrive_GW.shape[1] == rows
    assert {sum(plan.dropped for plan in update) for update in updates.values()} == {lost}, "every rank knows the total"

    def movement(plans: Mapping[int, RoutingPlan], g: int) -> Exchanging:
        kind = ExchangingDropless if is_dropless(case) else Exchanging
        return kind(grid, cast(Mapping[int, ExchangePlan], plans), g)

    def with_room(rank: int, g: int, n: int) -> np.ndarray:
        return np.where(updates[rank][n].inverse_GT[g] < 0, -1, case.own(rank)[n, g])

    assert_all_compute_what_one_computes_alone(case, updates, movement, with_room)


@given(cases(("910a",)))
def test_a_token_has_one_row_or_its_expert_was_full(case: Case):
    case.arrived = 10**4
    for rank, update in planned(case).items():
        for n, (plan, kind) in enumerate(zip(update, case.config.model.routed, strict=True)):
            for order, inverse, experts in zip(plan.order_GT, plan.inverse_GT, case.own(rank)[n], strict=True):
                kept = np.flatnonzero(inverse >= 0)
                assert np.array_equal(order[inverse[kept]], kept)
                assert np.array_equal(np.sort(order[order >= 0]), kept)
                assert len(set(inverse[kept].tolist())) == len(kept)
                for expert in np.unique(experts):
                    of_expert = np.flatnonzero(experts == expert)
                    of_sent = of_expert[: room_of_case(case)[kind].sent]
                    assert np.array_equal(np.intersect1d(of_expert, kept), of_sent)


def test_an_overflow_is_refused_with_the_factor_that_is_needed_on_every_rank():
    config = config_of(2, 2, 1, overflow="refuse", capacity_factor=1.5)
    rng, taker_B = np.random.default_rng(0), data_rank_of_sequences(config)
    domains_B = np.repeat([members[0] for members in config.domain_sets], 2)
    experts = domains_B[:, None] * 4 + rng.integers(0, 4, (LAYERS, 1, 8, LENGTH))
    experts[1, 0, 2] = domains_B[2] * 4 + 3  # a whole sequence for one expert
    rows = capacity(config)
    assert rows == int(np.ceil(1.5 * 24 / 8))
    messages = set()
    for rank in range(4):
        with pytest.raises(CapacityError) as error:
            ExchangePlanner(config, rank).plan(experts, taker_B)
        messages.add(str(error.value))
    assert len(messages) == 1
    message = messages.pop()
    assert f"RRE layer 1: a rank has 12 rows for expert {domains_B[2] * 4 + 3}, whose capacity is {rows}" in message
    assert "capacity_factor to 4 or more" in message
    enough = config_of(2, 2, 1, overflow="refuse", capacity_factor=4.0)
    assert not any(plan.dropped for plan in ExchangePlanner(enough, 0).plan(experts, taker_B))
