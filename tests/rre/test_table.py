"""Routing tables: fixed by their seed, different in every layer, even over ids (random) or over text (balanced)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_sigma.rre.table import RoutingTable, draw_tables, shares_of_experts
from pangu_sigma.sections import RoutingConfig

KINDS = ["random", "balanced"]


def zipf(domains: int, vocabulary: int, seed: int = 0) -> np.ndarray:
    """Token counts [D, V] as real text has them: the n-th most frequent id comes 1/n as often as the first."""
    counts_V = 1_000_000 // np.arange(1, vocabulary + 1)
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(counts_V) for _ in range(domains)])


def draw(
    kind: str, layers: int = 3, domains: int = 2, vocabulary: int = 1000, experts: int = 16, seed: int = 0
) -> RoutingTable:
    config = RoutingConfig(table=kind, seed=seed)
    return draw_tables(config, layers, domains, vocabulary, experts, zipf(domains, vocabulary))


def max_over_mean(table: RoutingTable, counts_DV: np.ndarray) -> np.ndarray:
    """Load of the fullest expert over the mean [N, D], positions being spread evenly."""
    domains, vocabulary = counts_DV.shape
    result_ND = np.empty((table.layers, domains))
    for domain in range(domains):
        load_NE = np.zeros((table.layers, table.experts))
        spread_V, ids_V = table.spread_DV[domain], np.arange(vocabulary)
        for shift in range(table.experts):  # position ≡ shift modulo the spread: a share 1 / spread of the id's tokens
            weight_V = np.where(shift < spread_V, counts_DV[domain] / spread_V, 0.0)
            expert_NV = table.route(ids_V, np.full(vocabulary, domain), np.full(vocabulary, shift))
            for layer, expert_V in enumerate(expert_NV - domain * table.experts):
                load_NE[layer] += np.bincount(expert_V, weight_V, minlength=table.experts)
        result_ND[:, domain] = load_NE.max(axis=1) / load_NE.mean(axis=1)
    return result_ND


@pytest.mark.parametrize("kind", KINDS)
def test_tables_follow_their_seed_and_differ_by_layer_and_domain(kind: str):
    assert draw(kind).hash == draw(kind).hash != draw(kind, seed=7).hash
    first_NDV = draw(kind).first_NDV
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (first_NDV[a] != first_NDV[b]).any(axis=1).all()
    assert (first_NDV[:, 0] != first_NDV[:, 1]).any()


@settings(max_examples=40)
@given(vocabulary=st.integers(1, 300), experts=st.integers(1, 20), seed=st.integers(0, 99))
def test_a_random_table_gives_every_expert_the_same_number_of_ids(vocabulary: int, experts: int, seed: int):
    table = draw("random", 2, 2, vocabulary, experts, seed)
    for first_V in table.first_NDV.reshape(-1, vocabulary):
        ids_of_expert = np.bincount(first_V, minlength=experts)
        assert ids_of_expert.max() - ids_of_expert.min() <= 1
    assert (table.spread_DV == 1).all()


@settings(max_examples=60)
@given(data=st.data(), kind=st.sampled_from(KINDS), experts=st.integers(1, 16))
def test_every_token_stays_in_its_domains_group(data: st.DataObject, kind: str, experts: int):
    table = draw(kind, 2, 3, 50, experts)
    size = data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    ids, domains, positions = rng.integers(0, 50, size), rng.integers(0, 3, size), rng.integers(0, 1024, size)
    expert_NT = table.route(ids, domains, positions)
    assert expert_NT.dtype == np.int32
    assert (expert_NT // experts == domains).all()


@pytest.mark.parametrize("experts", [2, 4, 10, 16])
def test_balanced_is_no_worse_than_random_on_zipf_text_and_nearly_even(experts: int):
    counts_DV = zipf(2, 2000)
    random, balanced = (
        max_over_mean(draw_tables(RoutingConfig(table=kind), 3, 2, 2000, experts, counts_DV), counts_DV)
        for kind in KINDS
    )
    assert (balanced <= random).all()
    assert balanced.max() < 1.01


@pytest.mark.parametrize("kind", KINDS)
def test_frequent_ids_that_meet_in_one_layer_meet_in_another_only_by_chance(kind: str):
    frequent = np.argsort(-zipf(1, 2000)[0])[10:200]
    lower, upper = draw(kind, 2, 1, 2000, 10).first_NDV[:, 0, frequent]
    pairs = ~np.eye(len(frequent), dtype=bool)
    together_lower, together_upper = (part[:, None] == part for part in (lower, upper))
    again = (together_lower & together_upper & pairs).sum() / (together_lower & pairs).sum()
    assert again == pytest.approx(1 / 10, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_that_never_occurred_are_dealt_out_evenly(kind: str):
    counts_DV = np.concatenate([zipf(1, 100), np.zeros((1, 900), np.int64)], axis=1)
    table = draw_tables(RoutingConfig(table=kind), 1, 1, 1000, 10, counts_DV)
    unseen_E = np.bincount(table.first_NDV[0, 0, 100:], minlength=10)
    assert unseen_E.max() <= 1.5 * unseen_E.mean()


def test_a_token_heavier_than_a_fair_share_is_spread_by_position():
    counts_DV = np.array([[100, 1, 1, 1, 1]])
    table = draw_tables(RoutingConfig(table="balanced"), 1, 1, 5, 4, counts_DV)
    heavy = table.route(np.zeros(8, int), np.zeros(8, int), np.arange(8))[0]
    assert set(heavy) == {0, 1, 2, 3}
    light = table.route(np.full(8, 3), np.zeros(8, int), np.arange(8))[0]
    assert len(set(light)) == 1


def test_balanced_takes_counts_of_zero_and_refuses_none():
    table = draw_tables(RoutingConfig(table="balanced"), 1, 1, 10, 4, np.zeros((1, 10), np.int64))
    assert (table.spread_DV == 1).all()
    with pytest.raises(ValueError, match=r"routing\.table=balanced needs token frequencies; run prepare-data"):
        draw_tables(RoutingConfig(table="balanced"), 1, 1, 10, 4, None)


def test_the_hash_changes_with_any_entry_the_shape_and_the_number_of_experts():
    table, rng = draw("random", 2, 2, 30, 4), np.random.default_rng(0)
    for _ in range(20):
        arrays = table.first_NDV.copy(), table.spread_DV.copy()
        changed = arrays[rng.integers(2)]
        changed.flat[rng.integers(changed.size)] += 1
        assert RoutingTable(*arrays, 4).hash != table.hash
    assert RoutingTable(table.first_NDV, table.spread_DV, 5).hash != table.hash
    assert RoutingTable(table.first_NDV.reshape(1, 4, 30), table.spread_DV, 4).hash != table.hash


@pytest.mark.parametrize("kind", ["random", "balanced"])
def test_shares_are_those_of_the_tokens_that_tables_route(kind):
    frequencies_DV = np.array([[900, 50, 30, 20, 0, 0], [1, 2, 3, 4, 5, 6]])
    table = draw_tables(RoutingConfig(table=kind), 2, 2, 6, 4, frequencies_DV, ["own", "common"], 3)
    positions = np.arange(12)  # as often at each position
    for domain in range(2):
        ids, at = np.repeat(np.arange(6), frequencies_DV[domain])[:, None], positions[None]
        experts = table.route(np.broadcast_to(ids, (len(ids), 12)), np.full((len(ids), 12), domain), at + 0 * ids)
        for n, (first, count) in enumerate([(4 * domain, 4), (0, 3)] * 2):
            counts = np.bincount(experts[n].ravel() - first, minlength=count)
            shares_DE = shares_of_experts(*table.of_segment(n), frequencies_DV)
            np.testing.assert_allclose(shares_DE[domain], counts / counts.sum(), atol=1e-12)
