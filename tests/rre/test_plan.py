"""A plan is a permutation of the batch that its offsets cut into experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.rre.plan import RoutingPlan, active_lists, plan_rows
from pangu_sigma.rre.table import RoutingTable, draw_tables
from pangu_sigma.sections import RoutingConfig

VOCABULARY = 40


@dataclass
class Case:
    """Micro-batches [G, B, S] and how to plan them."""

    table: RoutingTable
    ids: np.ndarray
    domains: np.ndarray
    positions: np.ndarray
    stored: int
    entries: int

    def plans(self) -> list[RoutingPlan]:
        experts = self.experts()
        return plan_rows(experts, active_lists(experts, [self.stored] * len(experts), [self.entries] * len(experts)))

    def experts(self) -> np.ndarray:
        """[N, G, T], straight from the table."""
        domains = np.broadcast_to(self.domains[..., None], self.ids.shape)
        routed = self.table.route(self.ids, domains, self.positions)
        return routed.reshape(self.table.layers, len(self.ids), -1)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    domains, experts, layers = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["random", "balanced"]))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    frequencies = rng.integers(0, 100, (domains, VOCABULARY))
    table = draw_tables(RoutingConfig(table=kind), layers, domains, VOCABULARY, experts, frequencies)
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 12)))
    stored = domains * experts
    case = Case(
        table,
        rng.integers(0, VOCABULARY, shape),
        rng.integers(0, domains, shape[:2]),
        rng.integers(0, 1024, shape),
        stored,
        stored,
    )
    needed = max(len(np.unique(experts_GT)) for experts_GT in case.experts())
    case.entries = draw(st.integers(needed, stored + 3))
    return case


@settings(deadline=None)
@given(cases())
def test_order_is_a_permutation_and_inverse_its_inverse(case: Case):
    for plan in case.plans():
        tokens = np.arange(plan.order_NT.shape[1])
        for order, inverse in zip(plan.order_NT, plan.inverse_NT, strict=True):
            assert np.array_equal(np.sort(order), tokens)
            assert np.array_equal(order[inverse], tokens)
            assert np.array_equal(inverse[order], tokens)


@settings(deadline=None)
@given(cases())
def test_every_token_lies_between_the_offsets_of_its_own_expert(case: Case):
    for g, plan in enumerate(case.plans()):
        for layer, experts_T in enumerate(case.experts()[:, g]):
            sorted_experts = np.repeat(plan.active_NA[layer], plan.load()[layer])
            assert np.array_equal(sorted_experts, experts_T[plan.order_NT[layer]])
            assert (
                sorted_experts // case.table.experts
                == np.repeat(case.domains[g], case.ids.shape[2])[plan.order_NT[layer]]
            ).all()


@settings(deadline=None)
@given(cases())
def test_offsets_match_counts_and_tokens_of_one_expert_keep_their_order(case: Case):
    for g, plan in enumerate(case.plans()):
        for layer, experts_T in enumerate(case.experts()[:, g]):
            offsets = plan.offsets_NA1[layer]
            assert (offsets[0], offsets[-1]) == (0, len(experts_T))
            for entry, expert in enumerate(plan.active_NA[layer]):
                rows = plan.order_NT[layer, offsets[entry] : offsets[entry + 1]]
                assert np.array_equal(rows, np.flatnonzero(experts_T == expert))


@settings(deadline=None)
@given(cases())
def test_the_active_list_is_shared_ascending_and_filled_with_stored(case: Case):
    plans = case.plans()
    for plan in plans:
        assert np.array_equal(plan.active_NA, plans[0].active_NA)
    for active_A, experts_GT in zip(plans[0].active_NA, case.experts(), strict=True):
        if case.entries == case.stored:
            assert np.array_equal(active_A, np.arange(case.stored))
            continue
        used = np.unique(experts_GT)
        assert np.array_equal(active_A[: len(used)], used)
        assert (active_A[len(used) :] == case.stored).all()


@settings(deadline=None)
@given(cases())
def test_plans_are_deterministic_and_int32(case: Case):
    for first, second in zip(case.plans(), case.plans(), strict=True):
        for a, b in zip(vars(first).values(), vars(second).values(), strict=True):
            assert a.dtype == np.int32
            assert np.array_equal(a, b)


def test_too_many_active_experts_is_an_error_with_the_fix():
    with pytest.raises(ValueError, match=r"activates 8 experts.*has 4 entries; raise data\.domains_per_step"):
        active_lists([np.arange(8)], [8], [4])
