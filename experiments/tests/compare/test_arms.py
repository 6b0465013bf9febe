"""Sizes of ways to give a token its FFN, in FFNs: equal where a token is computed, and counted where experts are stored."""

from __future__ import annotations

import pytest

from experiments.compare.arms import ARMS, sizes_of
from experiments.small import SMALL, tiny

STORED = {"dense": 1, "own_dense": 8.5, "mixed4_64": 40, "mixed16_16": 40}
STORED |= dict.fromkeys(("rre16", "mixed64", "hash64", "moge64"), 64)
ONE_DOMAIN = {
    "dense": 1,
    "own_dense": 2.5,
    "mixed": 10,
    "own_common": 10,
    "mixed4_64": 34,
    "mixed64": 40,
}
ONE_DOMAIN |= dict.fromkeys(("hash", "gate", "moge", "leak", "rre16", "mixed16_16"), 16)
ONE_DOMAIN |= dict.fromkeys(("hash64", "moge64"), 64)
OF_SEGMENTS = {
    "dense": [],
    "rre16": [64],
    "hash64": [64],
    "own_dense": [16, 1],
    "mixed4_64": [16, 16, 64, 64],
    "mixed16_16": [64, 64, 16, 16],
    "mixed64": [64] * 4,
    "moge64": [64] * 4,
} | {name: [16] * n for name, n in (("own_common", 2), ("own_own", 2), ("mixed", 4), ("moge", 4))}


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
    assert found.experts_N == OF_SEGMENTS.get(name, [16]) * config.model.rre_layers
