"""One level of hashing: the expert of an id does not depend on its domain, and every expert has as many ids as any other. And a
key that the experiment can have, and the product cannot: the next token."""

from __future__ import annotations

from itertools import product
from typing import get_args

import numpy as np
import pytest
from helpers.toy import VOCABULARY, toy_config

from experiments.compare.hashing import LeakingTable, hash_table
from pangu_sigma.rre.table import RoutingTable, draw_tables
from pangu_sigma.sections import RoutingConfig, Segment

IDS_DV = np.tile(np.arange(VOCABULARY), (4, 1))
DOMAINS_DV = np.repeat(np.arange(4), VOCABULARY).reshape(4, -1)


def test_an_id_has_one_of_all_experts_in_every_domain_at_every_position():
    config = toy_config()
    table = hash_table(config, VOCABULARY)
    experts_NDV = table.route(IDS_DV, DOMAINS_DV, IDS_DV % 7)
    assert experts_NDV.dtype == np.int32
    assert (experts_NDV == experts_NDV[:, :1]).all(), "no domain routes otherwise"
    counts_NK = [np.bincount(experts_V, minlength=config.experts) for experts_V in experts_NDV[:, 0]]
    assert np.ptp(counts_NK) <= 1, "60 ids over 8 experts: 7 or 8 each"
    assert not np.array_equal(*experts_NDV[:, 0]), "layers have tables of their own"


def test_tables_are_drawn_from_the_seed():
    def drawn(seed: int) -> np.ndarray:
        return hash_table(toy_config(routing={"seed": seed}), VOCABULARY).first_NDV

    assert np.array_equal(drawn(1), drawn(1))
    assert not np.array_equal(drawn(1), drawn(2))
    assert np.array_equal(drawn(1)[1], drawn(2)[0]), "layer l has seed + l, as the product's tables"
    balanced = hash_table(toy_config(routing={"seed": 1, "table": "balanced"}), VOCABULARY)
    assert np.array_equal(balanced.first_NDV, drawn(1)), "routing.table does not matter"


def changed_before(table: RoutingTable, at: int) -> np.ndarray:
    """True for each position in whose experts another id at a later place, `at`, changes something."""
    ids_DS = np.tile(np.arange(20), (4, 1))
    other_DS, domains_DS = ids_DS.copy(), np.repeat(np.arange(4), 20).reshape(4, -1)
    other_DS[:, at] = 41
    routes = [table.route(ids, domains_DS, ids_DS) for ids in (ids_DS, other_DS)]
    return (routes[0] != routes[1]).any(axis=(0, 1))[:at]


def test_the_leak_reads_the_next_token():
    config = toy_config(routing={"seed": 1})
    assert changed_before(hash_table(config, VOCABULARY, LeakingTable), 9).tolist() == [False] * 8 + [True]
    assert not changed_before(hash_table(config, VOCABULARY), 9).any()


@pytest.mark.parametrize(("table", "segment"), product(("random", "balanced"), ("own", "common")))
def test_no_table_of_the_product_reads_a_later_token(table, segment):
    fields = RoutingConfig.model_fields
    assert (set(fields), get_args(fields["table"].annotation)) == ({"table", "seed"}, ("random", "balanced"))
    assert get_args(Segment) == ("own", "common"), "a new kind of table or segment has to be tested here, too"
    counts_DV = np.arange(4 * VOCABULARY).reshape(4, -1) ** 2
    routing, common = RoutingConfig(table=table, seed=1), 8 * (segment == "common")
    drawn = draw_tables(routing, 2, 4, VOCABULARY, 2, counts_DV, ["own", segment], common)
    assert not changed_before(drawn, 9).any()
