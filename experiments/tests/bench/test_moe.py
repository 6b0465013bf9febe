"""The contenders of `bench moe` compute the same layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ascend_ops.grouped_ffn import grouped_ffn_oracle
from experiments.bench import moe

NAMES = ("y", "dx", "dw1", "db1", "dw2", "db2")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "LAYER_TOKENS": 200,
        "LAYER_HIDDEN": 16,
        "LAYER_FFN": 32,
        "LAYER_EXPERTS": 4,
        "LAYER_VOCABULARY": 500,
    }.items():
        monkeypatch.setattr(moe, name, value)


def results(contender: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
    """Of the second run: the first must not leave anything behind."""
    contender()
    return [result.copy() for result in contender()]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for name, mine, theirs in zip(NAMES, found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_case_is_as_uneven_as_it_says(graph_mode: None):
    load_A = moe.make_layer().load_A
    assert load_A.sum() == moe.LAYER_TOKENS
    assert load_A.max() / load_A.mean() == pytest.approx(2.2, abs=0.05)


def test_ours_is_every_token_through_its_expert_plus_the_residual(graph_mode: None, small: None):
    layer = moe.make_layer()
    order_T = np.argsort(layer.experts_T, kind="stable")
    offsets_A1 = np.concatenate([[0], np.cumsum(layer.load_A)])
    expected_TH = layer.residual_TH.copy()
    expected_TH[order_T] += grouped_ffn_oracle(layer.x_TH[order_T], *layer.weights, offsets_A1)
    np.testing.assert_allclose(results(moe.ours(layer))[0], expected_TH, rtol=1e-4, atol=1e-5)


def test_ours_with_a_single_expert_is_the_dense_ffn(graph_mode: None, small: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(moe, "LAYER_EXPERTS", 1)
    layer = moe.make_layer()
    assert_same(results(moe.ours(layer)), results(moe.dense(layer)))


@pytest.mark.parametrize("experts", [moe.grouped_mm, moe.loop_over_experts])
def test_the_peers_in_torch_compute_what_ours_computes(graph_mode: None, small: None, experts: Callable[..., object]):
    pytest.importorskip("torch")
    layer = moe.make_layer()
    assert_same(results(moe.torch_layer(layer, experts)), results(moe.ours(layer)))


def test_rows_have_every_field_and_absent_peers_are_named(
    graph_mode: None, small: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(moe.importlib.util, "find_spec", lambda name: None)
    rows = [row.as_dict() for row in moe.run(peers=True)]
    assert [row["peer"] for row in rows] == ["our dense FFN of equal FLOPs", moe.GROUPED, moe.LOOP]
    assert [row["ratio"] is None for row in rows] == [False, True, True]
    assert all(row["ours"] > 0 and row["runs"] >= 9 and row["unit"] == "ms" for row in rows)
    assert "max/mean load" in rows[0]["case"]
