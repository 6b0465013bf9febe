"""The contenders of `bench ops` do the same work."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.bench import moe, ops


def test_ours_and_mindspore_round_trips_agree(graph_mode: None):
    import mindspore as ms

    rng = np.random.default_rng(0)
    x, dout = (rng.standard_normal((40, 8)).astype(np.float32) for _ in range(2))
    order = rng.permutation(40).astype(np.int32)
    inverse = np.argsort(order).astype(np.int32)
    tensors = ms.Tensor(x), ms.Tensor(dout)
    pairs = (ops.ExpertDispatch(), ops.ExpertCombine()), (ops.Permute(), ops.Permute())
    ours, gathered = (
        ops.RoundTrip(ops.Moves(*pair))(tensors[0], (ms.Tensor(order), ms.Tensor(inverse)), tensors[1])
        for pair in pairs
    )
    theirs = ops.RoundTrip(ops.GatherScatter())(tensors[0], (ms.Tensor(order), ms.Tensor(order[:, None])), tensors[1])
    for mine, other, peer, expected in zip(ours, gathered, theirs, (x, dout), strict=True):
        assert np.array_equal(mine.asnumpy(), expected)
        assert np.array_equal(other.asnumpy(), expected)
        assert np.array_equal(peer.asnumpy(), expected)


def test_rows_have_every_field(graph_mode: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ops, "MOVED_TOKENS", 64)
    monkeypatch.setattr(ops, "MOVED_HIDDEN", 32)
    for name, size in {"TOKENS": 64, "HIDDEN": 16, "FFN": 24, "EXPERTS": 2, "VOCABULARY": 50}.items():
        monkeypatch.setattr(moe, f"LAYER_{name}", size)
    rows = [row.as_dict() for row in ops.run(peers=False)]
    timed = [row for row in rows if row["unit"] == "ms"]
    assert [row["peer"] for row in timed] == [
        "MindSpore Gather, gradient by the inverse",
        "MindSpore gather, scatter_nd",
        "copy of the same bytes, 2 threads",
        "tanh",
        "erf",
    ]
    assert all(row["ratio"] > 0 and row["runs"] >= 9 for row in timed)
    assert [row["ratio"] for row in rows if row["unit"] != "ms"] == [1.0] * 4
