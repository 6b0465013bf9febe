"""Sizes of ways to give a token its FFN, in FFNs: equal where a token is computed, and counted where experts are stored."""

from __future__ import annotations

import pytest

from experiments.compare.arms import ARMS, sizes_of
from experiments.small import SMALL, tiny

STORED = {"dense": 1, "rre16": 64, "hash64": 64, "own_dense": 8.5}
ONE_DOMAIN = {"dense": 1, "rre16": 16, "own_dense": 2.5, "mixed": 10, "own_common": 10}
ONE_DOMAIN |= dict.fromkeys(("hash", "gate", "moge", "leak"), 16) | {"hash64": 64}


@pytest.mark.parametrize("name", ARMS)
def test_active_size_is_equal_and_stored_size_is_counted(name: str):
    config = tiny(SMALL, ARMS[name].keys)
    assert config.num_params().active_per_token == tiny(SMALL).num_params().active_per_token
    found = sizes_of(ARMS[name], config)
    whole = 4 * (2 * 128 * 512 + 512 + 128)
    assert found.stored == pytest.approx(STORED.get(name, 16), rel=0.01), "but for the one output bias"
    assert found.bytes == pytest.approx(found.stored * whole)
    assert found.extracted == pytest.approx(ONE_DOMAIN.get(name, 4), rel=0.01)
    assert found.moved_bytes == (0 if name == "dense" else 2 * found.bytes), "weights there, gradients back"
    layers, experts = config.model.rre_layers, {"rre16": [64], "hash64": [64], "dense": []}
    by_layer = {"own_dense": [16, 1], "own_common": [16] * 2, "own_own": [16] * 2, "mixed": [16] * 4, "moge": [16] * 4}
    assert found.experts_N == (experts | by_layer).get(name, [16]) * layers
