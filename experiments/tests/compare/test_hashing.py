"""One level of hashing: the expert of an id does not depend on its domain, and every expert has as many ids as any other. And a
key that the experiment can have, and the product cannot: the next token."""

from __future__ import annotations

from itertools import product
from typing import get_args

import numpy as np
import pytest
from helpers.toy import VOCABULARY, toy_config

from experiments.compare.hashing import LeakingRows, LeakingTable, hash_table
from pangu_sigma.rre.own_table import own_table
from pangu_sigma.rre.row_keys import draw_row_tables
from pangu_sigma.rre.table import RoutingTable, draw_tables
from pangu_sigma.sections import RoutingConfig, RowsConfig, Segment

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


def test_rows_that_leak_read_the_next_token():
    entries = [RowsConfig(order=order, rows=40, width=8) for order in (1, 2)]
    table = RoutingTable(np.zeros((0, 4, VOCABULARY), np.int16), np.ones((4, VOCABULARY), np.int16), 1)
    row_EV, before_EV1 = draw_row_tables(entries, VOCABULARY, 0)
    ids_1S, numbers_1S = np.tile(np.arange(20), (2, 1)), np.arange(20)
    ids_1S[1, 9] = 41
    for kind, leaks in ((LeakingRows, True), (RoutingTable, False)):
        keyed = kind(**vars(table) | {"row_EV": row_EV, "before_EV1": before_EV1})
        keys = keyed.row_keys(entries, ids_1S, np.zeros_like(ids_1S), np.broadcast_to(numbers_1S, ids_1S.shape))
        changed = (keys[:, 0] != keys[:, 1]).any(axis=0)[:9].tolist()
        assert changed == [False] * 8 + [leaks]


def test_every_kind_of_table_and_segment_is_tested_here():
    assert set(RoutingConfig.model_fields) == {"table", "seed"}
    with pytest.raises(ValueError, match="must be 'random' or 'balanced', or a file"):
        RoutingConfig(table="another")
    assert get_args(Segment) == ("own", "common")


@pytest.mark.parametrize(("table", "segment"), product(("random", "balanced", "of one's own"), ("own", "common")))
def test_no_table_of_the_product_reads_a_later_token(table, segment):
    common = 8 * (segment == "common")
    if table == "of one's own":
        config = toy_config(model={"segments": ["own", segment], "common_experts": common})
        found = own_table(lambda text, token, domain, n: token % 2, config, ["a"] * VOCABULARY)
    else:
        counts_DV = np.arange(4 * VOCABULARY).reshape(4, -1) ** 2
        routing = RoutingConfig(table=table, seed=1)
        found = draw_tables(routing, 2, 4, VOCABULARY, 2, counts_DV, ["own", segment], common)
    assert not changed_before(found, 9).any()
