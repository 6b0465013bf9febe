"""One level of hashing: the expert of an id does not depend on its domain, and every expert has as many ids as any other."""

from __future__ import annotations

import numpy as np
from helpers.toy import VOCABULARY, toy_config

from experiments.compare.hashing import hash_table

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
