"""Sizes of ways to give a token its FFN: equal where a token is computed, and counted where experts and rows are stored."""

from __future__ import annotations

import pytest

from experiments.compare.arms import ARMS, sizes_of
from experiments.small import SMALL, tiny

STORED = {"dense": 1, "own_dense": 8.5, "mixed4_64": 40, "mixed16_16": 40, "mixed128": 128, "dense_rows": 1}
STORED |= dict.fromkeys(
    ("rre16", "mixed64", "hash64", "moge64", *(name for name in ARMS if name.startswith("rows"))), 64
)
"""FFNs of F inner units in each of the upper layers."""
ONE_DOMAIN = {
    "dense": 1,
    "own_dense": 2.5,
    "mixed": 10,
    "own_common": 10,
    "mixed4_64": 34,
    "mixed128": 80,
    "dense_rows": 1,
}
ONE_DOMAIN |= dict.fromkeys(("hash", "gate", "moge", "leak", "rre16", "mixed16_16"), 16)
ONE_DOMAIN |= dict.fromkeys(("hash64", "moge64"), 64)
ONE_DOMAIN |= dict.fromkeys(("mixed64", *(name for name in ARMS if name.startswith("rows"))), 40)
OF_SEGMENTS = {
    "rre16": [64],
    "hash64": [64],
    "own_dense": [16, 1],
    "mixed4_64": [16, 16, 64, 64],
    "mixed16_16": [64, 64, 16, 16],
    "mixed64": [64] * 4,
    "moge64": [64] * 4,
    "mixed128": [128] * 4,
} | {name: [16] * n for name, n in (("own_common", 2), ("own_own", 2), ("mixed", 4), ("moge", 4))}
FFN = 2 * 128 * 512 + 512 + 128


@pytest.mark.parametrize("name", ARMS)
def test_active_size_is_equal_and_stored_size_is_counted(name: str):
    config, dense = tiny(SMALL, ARMS[name].keys), name in ("dense", "dense_rows")
    found, rows = sizes_of(ARMS[name], config), 2 * 131_071 * 64 if "rows" in name else 0
    more = 128 + 4 if rows else 0  # the rows of a token, and the scales of the layers
    assert config.num_params().active_per_token == tiny(SMALL).num_params().active_per_token + more
    lower, upper = 2 * FFN, 2 * FFN * STORED.get(name, 16)
    assert found.stored == pytest.approx(lower + upper + rows, rel=0.01), "but for the one output bias"
    alone = rows / 4 if name == "rows_own" else rows
    assert found.extracted == pytest.approx(lower + 2 * FFN * ONE_DOMAIN.get(name, 4) + alone, rel=0.01)
    moved = 0 if dense else 8 * config.num_params().experts
    assert found.moved_bytes == moved + (8 * 8 * 256 * 128 if rows else 0), "weights and rows there, gradients back"
    expected = [] if dense else OF_SEGMENTS.get(name, [64] * 4 if rows else [16]) * 2
    assert found.experts_N == expected
    assert found.flops == sizes_of(ARMS["rre"], tiny(SMALL)).flops + 6 * more, "rows add less than 0.1 %"
    assert 6 * more < 1e-3 * found.flops
