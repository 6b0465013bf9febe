"""The factors that drop nothing, against what training counts."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.small_clusters import by_hand

from experiments.factors import needed_factors
from pangu_sigma.npu.planner import ExchangePlanner
from pangu_sigma.ranks.layout import data_rank_of_sequences
from pangu_sigma.rre.table import draw_tables

DOMAINS = [{"name": "a", "weight": 3.0}, {"name": "b"}]


@pytest.mark.parametrize("chip", ["910a", "910b"])
def test_one_expert_a_domain_gets_all_rows_and_needs_no_more(chip):
    config = by_hand(model={"experts_per_domain": 1}, domains=DOMAINS, parallel={"expert": 1, "data": 2, "chip": chip})
    found = needed_factors(config, steps=50)
    assert (found.capacity, found.arrival, found.steps) == (1.0, 1.0, 50)
    assert "1 / (rank + 2.7)" in found.frequencies


def test_two_blocks_of_a_domain_share_its_experts():
    """Both blocks are of the one set, and so of one domain in most steps: twice the rows for half of the active experts."""
    sections = {"model": {"experts_per_domain": 1}, "data": {"domains_per_step": 2}, "domains": DOMAINS}
    found = needed_factors(by_hand(**sections, parallel={"expert": 1, "data": 2}), steps=50)
    assert (found.capacity, found.arrival) == (2.0, 2.0)


def test_a_balanced_table_needs_less():
    model = {"experts_per_domain": 4, "slot_rows": 2_000, "seq_length": 256}
    of_table = {
        kind: needed_factors(by_hand(model=model, domains=DOMAINS, routing={"table": kind}), steps=100)
        for kind in ("random", "balanced")
    }
    assert of_table["balanced"].capacity < of_table["random"].capacity
    assert of_table["balanced"].arrival < of_table["random"].arrival
    assert of_table["balanced"].arrival < of_table["balanced"].capacity, "ranks even out"


@pytest.mark.parametrize("segments", [["own"], ["own", "common"]], ids=len)
@pytest.mark.parametrize("chip", ["910a", "910b"])
def test_with_these_factors_training_drops_no_row_and_with_a_tenth_less_it_does(chip, segments):
    """The planner of training, on tokens of the same frequencies; other steps than the simulated ones, and as many."""
    model = {"experts_per_domain": 4, "slot_rows": 500, "seq_length": 128}
    sections = {"model": model, "domains": DOMAINS, "routing": {"table": "balanced"}}
    model |= {"segments": segments, "common_experts": 6 * ("common" in segments)}
    small = by_hand(**sections, parallel={"chip": chip})
    found = needed_factors(small, steps=300)
    frequencies = 1e9 / (np.arange(500) + 3.7)
    table = draw_tables(small.routing, 1, 1, 500, 4, frequencies[None], segments, small.model.common_experts)
    rng, dropped = np.random.default_rng(1), {}
    ids = rng.choice(500, (300, 4, 128), p=frequencies / frequencies.sum())
    positions = np.broadcast_to(rng.integers(0, 1 << 20, ids.shape), ids.shape)
    experts = table.route(ids, np.zeros_like(ids), positions)  # [N, 300, 4, 128]
    for scale in (1.05, 0.9):
        factors = {"capacity_factor": scale * found.capacity, "arrival_factor": scale * found.arrival}
        config = by_hand(**sections, parallel={"chip": chip, "overflow": "drop"} | factors)
        planner, taken = ExchangePlanner(config, 0), data_rank_of_sequences(config)
        dropped[scale] = sum(plan.dropped for s in range(300) for plan in planner.plan(experts[:, s : s + 1], taken))
    assert dropped[1.05] == 0
    assert dropped[0.9] > 0
