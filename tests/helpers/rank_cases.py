"""Batches for ranks in several layouts, and what must hold of the plans that the ranks make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from helpers.plan_player import HIDDEN, ByRank, Movement, Weights, computed_alone, play
from hypothesis import strategies as st

from pangu_sigma.config import Config
from pangu_sigma.config_file import parse_config
from pangu_sigma.ranks.layout import Layout, active_entries, data_rank_of, data_rank_of_sequences, share_of
from pangu_sigma.rre.plan import RoutingPlan
from pangu_sigma.sections import Segment

LAYERS, LENGTH = 2, 12


def config_of(groups: int, expert: int, data: int, segments: list[Segment] | None = None, **parallel: object) -> Config:
    """Eight domains in four sets, four blocks, four experts a domain; in common segments twelve."""
    segments = segments or ["own"]
    model = {"hidden": 8, "ffn": 8, "heads": 1, "dense_layers": 1, "rre_layers": LAYERS, "experts_per_domain": 4}
    return parse_config(
        {
            "name": "test",
            "model": model
            | {"seq_length": LENGTH, "segments": segments, "common_experts": 12 * ("common" in segments)},
            "domains": [{"name": f"d{i}", "weight": 1.0 + i} for i in range(8)],
            "data": {"domains_per_step": 4, "domain_sets": 4},
            "train": {"batch_size": 4 * expert * data},
            "parallel": {"groups": groups, "expert": expert, "data": data, "overflow": "drop"} | parallel,
        }
    )


@dataclass
class Case:
    """A batch. experts [N, G, B, S]: of its tokens. capacity, arrived: limits for NPUs."""

    config: Config
    experts: np.ndarray
    capacity: int
    arrived: int

    @property
    def taker_B(self) -> np.ndarray:
        return data_rank_of_sequences(self.config)

    @property
    def ranks(self) -> range:
        return range(self.config.parallel.ranks)

    def own(self, rank: int) -> np.ndarray:
        """Experts of the rank's tokens [N, G, T]."""
        mine = self.taker_B == data_rank_of(self.config, rank)
        return self.experts[:, :, mine].reshape(*self.experts.shape[:2], -1)

    def held(self, rank: int, n: int) -> np.ndarray:
        """Ids of the experts that the rank has of segment n."""
        return share_of(self.config, rank).routed[n].held


@st.composite
def cases(draw: st.DrawFn, chips: tuple[str, ...] = ("910a",)) -> Case:
    layouts = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (4, 2, 2), (2, 4, 1), (1, 4, 2)]
    segments = draw(st.sampled_from([["own"], ["own", "common"], ["own", "own"], ["own", "own", "common", "common"]]))
    config = config_of(*draw(st.sampled_from(layouts)), segments, chip=draw(st.sampled_from(chips)))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    blocks, micro = config.data.domains_per_step, draw(st.integers(1, 2))
    sets = config.domain_sets
    domains_M = np.array([rng.choice(sets[m % 4]) for m in range(blocks)])
    domains_B = np.repeat(domains_M, config.train.batch_size // blocks)
    some = draw(st.integers(1, 4))  # experts of a domain that have tokens
    shape = (micro, len(domains_B), LENGTH)
    own, common = (rng.integers(0, some, shape) + domains_B[:, None] * 4 for _ in range(2))
    experts = np.stack([own if kind == "own" else common % 12 for kind in config.model.routed])
    return Case(config, experts, draw(st.integers(1, 14)), draw(st.sampled_from([5, 20, 10**4])))


def assert_active_are_those_of_the_batch(case: Case, updates: Mapping[int, Sequence[RoutingPlan]]) -> None:
    """All ranks together have the experts of the batch in their active lists, each with the number of its tokens."""
    for n, kind in enumerate(case.config.model.routed):
        actual: dict[tuple[int, int], int] = {}
        for rank, update in updates.items():
            held, at = case.held(rank, n), Layout(case.config.parallel).coordinates(rank)
            active, used_A = update[n].active_A, np.diff(update[n].used_A1)
            assert len(active) == active_entries(case.config, kind)
            used = active < len(held)
            assert (np.diff(active[used]) > 0).all()
            assert (active[~used] == len(held)).all()
            assert (used_A[~used] == 0).all()
            for expert, tokens in zip(held[active[used]], used_A[used], strict=True):
                assert actual.setdefault((at.data, int(expert)), int(tokens)) == tokens, (
                    "copies of an expert count alike"
                )
        ids, counts = np.unique(case.experts[n], return_counts=True)
        expected = dict(zip(ids.tolist(), counts.tolist(), strict=True))
        for data in range(case.config.parallel.data):
            assert {k: tokens for (d, k), tokens in actual.items() if tokens and d == data} == expected


def assert_all_compute_what_one_computes_alone(
    case: Case,
    updates: Mapping[int, Sequence[RoutingPlan]],
    movement: Callable[[Mapping[int, RoutingPlan], int], Movement],
    experts_of: Callable[[int, int, int], np.ndarray],
) -> None:
    """The way of every row of every rank, there and back, and its gradient: a token gets what its expert
    makes of it, and an expert the gradients of its tokens. movement(plans, g): how rows of a segment
    move in pass g, by its plans of the ranks. experts_of(rank, g, n): experts of the rank's tokens,
    -1 for none."""
    routed, rng = case.config.model.routed, np.random.default_rng(0)
    for g, n in np.ndindex(case.experts.shape[1], len(routed)):
        plans = {rank: update[n] for rank, update in updates.items()}
        experts: ByRank = {rank: experts_of(rank, g, n) for rank in plans}
        weights = Weights.drawn(rng, case.config.stored_experts(routed[n]))
        x, dy = ({r: rng.integers(-3, 4, (len(e), HIDDEN)).astype(float) for r, e in experts.items()} for _ in range(2))

        def ids(rank: int, active_A: np.ndarray, n: int = n) -> np.ndarray:
            held = case.held(rank, n)
            return held[np.minimum(active_A, len(held) - 1)]  # unused entries fetch some expert

        actual = play(movement(plans, g), x, dy, weights, ids)
        expected = computed_alone(x, dy, weights, experts)
        for rank in plans:
            assert np.array_equal(actual.y[rank], expected.y[rank])
            assert np.array_equal(actual.dx[rank], expected.dx[rank])
        for mine, alone in zip(actual.gradients, expected.gradients, strict=True):
            assert np.array_equal(mine, alone)
