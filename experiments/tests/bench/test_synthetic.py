"""Drawn text is the same for the same seed, and every token of it counts."""

from __future__ import annotations

import numpy as np

from experiments.bench.synthetic import FIRST, SharedTier, SyntheticRun, config_of
from pangu_sigma.ecss.store import make_store

MODEL = {
    "hidden": 16, "ffn": 24, "heads": 2, "dense_layers": 0, "rre_layers": 1, "experts_per_domain": 2, "seq_length": 16,
    "slot_rows": 64,
}  # fmt: skip


def test_batches_are_drawn_anew_but_alike_in_two_runs(graph_mode: None):
    config = config_of(2, MODEL, train={"batch_size": 4})
    runs = [SyntheticRun(config), SyntheticRun(config)]
    first, again = ([run.batch() for _ in range(3)] for run in runs)
    for one, other in zip(first, again, strict=True):
        assert one.tokens == 4 * 16, "every token counts in the loss"
        for mine, theirs in zip(one.arrays().of_micro_batch(0), other.arrays().of_micro_batch(0), strict=True):
            assert np.array_equal(mine, theirs)
    ids = [batch.arrays().of_micro_batch(0)[0] for batch in first]
    assert not np.array_equal(ids[0], ids[1])
    assert min(int(each.min()) for each in ids) >= FIRST


def test_two_stores_share_the_arrays_of_one(graph_mode: None):
    config = config_of(2, MODEL, train={"batch_size": 4})
    store = make_store(config)
    shared = make_store(config, SharedTier(store))
    weights = [[weight for experts in each.segments for weight in experts.weights] for each in (store, shared)]
    addresses = [[weight.asnumpy().ctypes.data for weight in of_store] for of_store in weights]
    assert addresses[0] == addresses[1]
