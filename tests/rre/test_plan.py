"""A plan is a permutation of the batch that its offsets cut into experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.rre.plan import RoutedSegment, RoutingPlan, active_list, plan_segment
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
        """Of each layer."""
        return [plan_segment(self.segment(n), experts, experts) for n, experts in enumerate(self.experts())]

    def segment(self, n: int) -> RoutedSegment:
        return RoutedSegment(n, "own", self.stored, np.arange(self.stored), self.entries, True)

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


@given(cases())
def test_a_plan_sorts_the_tokens_of_a_batch_by_expert(case: Case):
    for plan, again, experts_GT in zip(case.plans(), case.plans(), case.experts(), strict=True):
        # the active list is ascending, and filled up with `stored`
        used = np.unique(experts_GT)
        all_are_active = case.entries == case.stored
        expected_A = np.arange(case.stored) if all_are_active else np.append(used, [case.stored] * case.entries)
        assert np.array_equal(plan.active_A, expected_A[: case.entries])
        for order_T, inverse_T, offsets, experts_T in zip(
            plan.order_GT, plan.inverse_GT, plan.offsets_GA1, experts_GT, strict=True
        ):
            assert (offsets[0], offsets[-1]) == (0, len(experts_T))
            for entry, expert in enumerate(plan.active_A):
                rows = order_T[offsets[entry] : offsets[entry + 1]]
                assert np.array_equal(rows, np.flatnonzero(experts_T == expert))
            assert np.array_equal(inverse_T[order_T], np.arange(len(order_T)))
        # the tokens of an update are those of all passes
        assert plan.used_A1[0] == 0
        assert np.array_equal(np.diff(plan.used_A1), np.diff(plan.offsets_GA1).sum(axis=0))
        for (name, a), b in zip(vars(plan).items(), vars(again).values(), strict=True):
            assert name == "dropped" or a.dtype == np.int32
            assert np.array_equal(a, b), "deterministic"


def test_too_many_active_experts_is_an_error_with_the_fix():
    with pytest.raises(ValueError, match=r"activates 8 experts.*has 4 entries; raise data\.domains_per_step"):
        active_list(RoutedSegment(0, "own", 8, np.arange(8), 4, True), np.arange(8))
