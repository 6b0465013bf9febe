"""Plans of ranks: together they are the plan of the whole batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from helpers.plan_player import HIDDEN, Player, Weights, computed_alone, play
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.config import Config
from pangu_sigma.config_file import parse_config
from pangu_sigma.parallel.layout import (
    Layout,
    Room,
    active_entries,
    as_many_rows,
    capacity,
    data_rank_of,
    data_rank_of_sequences,
    dispatch_layout,
    entries_of_segments,
    room_of,
    share_of,
)
from pangu_sigma.parallel.plans import Planner, UpdatePlan
from pangu_sigma.rre.capacity import Capacity, CapacityError, DispatchLayout
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
    config: Config
    experts: np.ndarray
    """[N, G, B, S]."""
    capacity: int
    layout: DispatchLayout

    arrived: int = 10**6

    @property
    def room(self) -> Room:
        """Capacity and what may arrive are those of an own expert; of common ones as many rows, which are of more or fewer."""
        sent = as_many_rows(self.config, dict.fromkeys(self.config.model.kinds, self.capacity))
        arrived = dict.fromkeys(self.config.model.kinds, self.arrived)
        arrived = arrived if self.layout == "dropless" else as_many_rows(self.config, arrived)
        return {
            kind: Capacity(
                None if self.layout == "dropless" else sent[kind], arrived[kind] if self.travels_on else None
            )
            for kind in sent
        }

    @property
    def travels_on(self) -> bool:
        """True if what arrives is brought together."""
        return self.layout in ("compacted", "dropless")

    def plan(self, rank: int) -> UpdatePlan:
        return Planner(self.config, rank, self.layout).plan(
            self.experts, data_rank_of_sequences(self.config), self.room
        )

    def own(self, rank: int) -> np.ndarray:
        """Experts of the rank's tokens [N, G, T]."""
        mine = data_rank_of_sequences(self.config) == data_rank_of(self.config, rank)
        return self.experts[:, :, mine].reshape(*self.experts.shape[:2], -1)

    def held(self, rank: int, n: int) -> np.ndarray:
        """Ids of the experts that the rank has of segment n."""
        return share_of(self.config, rank).held[self.config.model.routed[n]]


@st.composite
def cases(draw: st.DrawFn, layouts_of_rows: tuple[DispatchLayout, ...] = ()) -> Case:
    layouts = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (4, 2, 2), (2, 4, 1), (1, 4, 2)]
    segments = draw(st.sampled_from([["own"], ["own", "common"], ["own", "own"], ["own", "own", "common", "common"]]))
    config = config_of(*draw(st.sampled_from(layouts)), segments)
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    blocks, micro = config.data.domains_per_step, draw(st.integers(1, 2))
    sets = config.domain_sets
    domains_M = np.array([rng.choice(sets[m % 4]) for m in range(blocks)])
    domains_B = np.repeat(domains_M, config.train.batch_size // blocks)
    some = draw(st.integers(1, 4))  # experts of a domain that have tokens
    shape = (micro, len(domains_B), LENGTH)
    own, common = (rng.integers(0, some, shape) + domains_B[:, None] * 4 for _ in range(2))
    experts = np.stack([own if kind == "own" else common % 12 for kind in config.model.routed])
    local = dispatch_layout(config)
    layout = draw(st.sampled_from(layouts_of_rows or (local, "all_to_all", "compacted", "dropless")))
    return Case(config, experts, draw(st.integers(1, 14)), layout, draw(st.sampled_from([5, 20, 10**4])))


@pytest.mark.parametrize("layout", [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2), (4, 4, 1)])
def test_every_sequence_is_taken_once_by_ranks_that_store_its_experts(layout):
    config = config_of(*layout)
    taken = data_rank_of_sequences(config)
    ranks = range(config.parallel.ranks)
    assert sorted({data_rank_of(config, r) for r in ranks}) == sorted(set(taken.tolist()))
    assert len(set(np.bincount(taken).tolist())) == 1
    experts = {r: set(share_of(config, r).held["own"].tolist()) for r in ranks}
    for block, set_of_block in enumerate(np.arange(4) % 4):
        for taker in taken[block * len(taken) // 4 : (block + 1) * len(taken) // 4]:
            rank = next(r for r in ranks if data_rank_of(config, r) == taker)
            assert set_of_block in share_of(config, rank).sets
    for rank in ranks:
        group = [experts[r] for r in Layout(config.parallel).peers(rank, "expert")]
        assert sum(map(len, group)) == len(set.union(*group)) == config.experts // layout[0]


@settings(deadline=None)
@given(cases())
def test_active_experts_of_all_ranks_are_those_of_the_batch(case: Case):
    for layer, kind in enumerate(case.config.model.routed):
        for data in range(case.config.parallel.data):
            found: dict[int, int] = {}
            for rank in range(case.config.parallel.ranks):
                if Layout(case.config.parallel).coordinates(rank).data != data:
                    continue
                plan, held = case.plan(rank), case.held(rank, layer)
                active = plan.plans[0].active_NA[layer]
                assert len(active) == max(entries_of_segments(case.config))
                assert (active[active_entries(case.config, kind) :] == len(held)).all()
                used = active < len(held)
                assert (np.diff(active[used]) > 0).all()
                assert (active[~used] == len(held)).all()
                assert (plan.used_NA[layer, ~used] == 0).all()
                for expert, tokens in zip(held[active[used]], plan.used_NA[layer, used], strict=True):
                    assert found.setdefault(int(expert), int(tokens)) == tokens, "copies of an expert count alike"
            ids, counts = np.unique(case.experts[layer], return_counts=True)
            assert {k: v for k, v in found.items() if v} == dict(zip(ids.tolist(), counts.tolist(), strict=True))


@settings(deadline=None)
@given(cases(("all_to_all",)))
def test_every_row_arrives_at_the_entry_of_its_expert(case: Case):
    """The exchange in NumPy: what peer p has for this rank lies in block p of what arrives."""
    layout, routed = Layout(case.config.parallel), case.config.model.routed
    peers = case.config.parallel.expert
    plans = {rank: case.plan(rank).plans for rank in range(case.config.parallel.ranks)}
    for rank, of_rank in plans.items():
        for g, plan in enumerate(of_rank):
            for n, kind in enumerate(routed):
                held, entries, rows = (
                    np.append(case.held(rank, n), -1),
                    active_entries(case.config, kind),
                    case.room[kind].sent,
                )
                assert plan.order_NT.shape[1] == peers * entries * rows
                assert np.array_equal(plan.offsets_NA1[n, : entries + 1], np.arange(entries + 1) * peers * rows)
                assert (plan.offsets_NA1[n, entries:] == entries * peers * rows).all()
                for source in layout.peers(rank, "expert"):
                    sent = plans[source][g].order_NT[n].reshape(peers, entries, rows)[layout.coordinates(rank).expert]
                    for entry, tokens in enumerate(sent):
                        there = tokens[tokens >= 0]
                        assert (tokens[len(there) :] == -1).all()
                        assert (np.diff(there) > 0).all(), "tokens keep their order in the batch"
                        assert (case.own(source)[n, g, there] == held[plan.active_NA[n, entry]]).all()


@settings(deadline=None)
@given(cases(("all_to_all",)))
def test_a_token_has_one_row_or_its_expert_was_full(case: Case):
    counts = []
    for rank in range(case.config.parallel.ranks):
        update = case.plan(rank)
        lost = 0
        for g, plan in enumerate(update.plans):
            for n, kind in enumerate(case.config.model.routed):
                order, inverse, experts = plan.order_NT[n], plan.inverse_NT[n], case.own(rank)[n, g]
                kept = np.flatnonzero(inverse >= 0)
                assert np.array_equal(order[inverse[kept]], kept)
                assert np.array_equal(np.sort(order[order >= 0]), kept)
                assert len(set(inverse[kept].tolist())) == len(kept)
                for expert in np.unique(experts):
                    of_expert = np.flatnonzero(experts == expert)
                    assert np.array_equal(np.intersect1d(of_expert, kept), of_expert[: case.room[kind].sent])
                lost += len(experts) - len(kept)
        counts.append((lost, update.dropped))
    assert {dropped for _, dropped in counts} == {sum(lost for lost, _ in counts)}, "every rank knows the total"


@settings(deadline=None)
@given(cases())
def test_the_capacity_that_fullest_names_is_enough_and_one_less_is_not(case: Case):
    planner, everybody = Planner(case.config, 0, "all_to_all"), data_rank_of_sequences(case.config)
    needed = planner.needed_capacity(case.experts, everybody)
    enough = as_many_rows(case.config, needed)
    assert planner.plan(case.experts, everybody, {k: Capacity(rows) for k, rows in enough.items()}).dropped == 0
    if case.config.model.kinds == ["own"]:
        assert planner.plan(case.experts, everybody, {"own": Capacity(needed["own"] - 1)}).dropped > 0


def test_an_overflow_is_refused_with_the_factor_that_is_needed_on_every_rank():
    config = config_of(2, 2, 1, overflow="refuse", capacity_factor=1.5)
    rng = np.random.default_rng(0)
    domains_B = np.repeat([members[0] for members in config.domain_sets], 2)
    experts = domains_B[:, None] * 4 + rng.integers(0, 4, (LAYERS, 1, 8, LENGTH))
    experts[1, 0, 2] = domains_B[2] * 4 + 3  # a whole sequence for one expert
    rows = capacity(config)
    assert rows == int(np.ceil(1.5 * 24 / 8))
    messages = set()
    for rank in range(4):
        with pytest.raises(CapacityError) as error:
            Planner(config, rank, dispatch_layout(config)).plan(
                experts, data_rank_of_sequences(config), {"own": Capacity(rows)}
            )
        messages.add(str(error.value))
    assert len(messages) == 1
    message = messages.pop()
    assert f"RRE layer 1: a rank has 12 rows for expert {domains_B[2] * 4 + 3}, whose capacity is {rows}" in message
    assert "capacity_factor to 4 or more" in message
    enough = config_of(2, 2, 1, overflow="refuse", capacity_factor=4.0)
    layout = dispatch_layout(enough)
    assert (
        Planner(enough, 0, layout).plan(experts, data_rank_of_sequences(enough), room_of(enough, layout)).dropped == 0
    )


@settings(deadline=None)
@given(cases())
def test_all_ranks_together_compute_what_one_computes_alone(case: Case):
    """The way of every row of every rank, there and back, and its gradient: a token gets what its expert makes of it, or nothing
    where it found no room, and an expert gets the gradients of its tokens."""
    parallel, routed, rng = case.config.parallel, case.config.model.routed, np.random.default_rng(0)
    updates, lost = {rank: case.plan(rank) for rank in range(parallel.ranks)}, 0
    for g, n in np.ndindex(case.experts.shape[1], len(routed)):
        plans = {rank: update.plans[g] for rank, update in updates.items()}
        experts = {rank: np.where(p.inverse_NT[n] < 0, -1, case.own(rank)[n, g]) for rank, p in plans.items()}
        weights = Weights.drawn(rng, case.config.stored_experts(routed[n]))
        x, dy = ({r: rng.integers(-3, 4, (len(e), HIDDEN)).astype(float) for r, e in experts.items()} for _ in range(2))

        def ids(rank: int, active_A: np.ndarray, n=n) -> np.ndarray:
            held = case.held(rank, n)
            return held[np.minimum(active_A, len(held) - 1)]  # unused entries fetch some expert

        player = Player(Layout(parallel), case.layout, plans, n, active_entries(case.config, routed[n]))
        found, expected = play(player, x, dy, weights, ids), computed_alone(x, dy, weights, experts)
        for rank in plans:
            assert np.array_equal(found.y[rank], expected.y[rank])
            assert np.array_equal(found.dx[rank], expected.dx[rank])
            lost += int((experts[rank] < 0).sum())
        for mine, alone in zip(found.gradients, expected.gradients, strict=True):
            assert np.array_equal(mine, alone)
    assert {update.dropped for update in updates.values()} == {lost}
