"""Rows in records: what is gathered, and lazy AdamW against the float64 oracle, by the row's own step count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascend_ops.adam import adam_oracle
from ascend_ops.rows import gather_rows, record_size, update_rows

HYPER = {"lr": 1e-2, "grad_scale": 0.5, "apply": 1.0, "beta1": 0.8, "beta2": 0.95, "eps": 1e-12}
EXACT = {name: float(np.float32(value)) for name, value in HYPER.items() if name != "apply"} | {"weight_decay": 0.0}


def hyper(**changed: float) -> np.ndarray:
    return np.array(list({**HYPER, **changed}.values()), np.float32)


@settings(max_examples=40)
@given(rows=st.integers(1, 9), width=st.integers(1, 37), tokens=st.integers(1, 40), seed=st.integers(0, 999))
def test_rows_follow_the_oracle_by_the_sum_of_their_gradients(rows: int, width: int, tokens: int, seed: int):
    rng = np.random.default_rng(seed)
    records = np.zeros((rows, record_size(width)), np.float32)
    exact = [[np.zeros(width)] * 3 for _ in range(rows)]
    steps = np.zeros(rows, np.int32)
    for _ in range(3):
        keys_T, grads_TH = rng.integers(rows, size=tokens), rng.normal(size=(tokens, width + 3)).astype(np.float32)
        met = update_rows(records, keys_T, grads_TH[:, 2 : 2 + width], hyper())
        assert met.tolist() == sorted(set(keys_T.tolist()))
        for key in met:
            steps[key] += 1
            grad = grads_TH[keys_T == key, 2 : 2 + width].astype(np.float64).sum(axis=0)
            exact[key] = list(adam_oracle(*exact[key], int(steps[key]), grad, **EXACT))
    assert np.array_equal(records[:, -1].view(np.int32), steps)
    for key, (w, m, v) in enumerate(exact):
        wide = np.concatenate([w, m, v])
        np.testing.assert_allclose(records[key, :-1], wide, rtol=2e-4, atol=2e-6 * max(1e-9, np.abs(wide).max()))
    keys_T = rng.integers(rows, size=tokens)
    e_TH = np.full((tokens, width + 2), np.nan, np.float32)
    gather_rows(records, keys_T, e_TH[:, 1:-1])
    assert np.array_equal(e_TH[:, 1:-1], records[keys_T, :width]) and np.isnan(e_TH[:, [0, -1]]).all()


def test_a_step_that_is_not_applied_changes_no_bit():
    records = np.zeros((3, record_size(4)), np.float32)
    update_rows(records, np.array([0, 2, 2]), np.full((3, 4), np.inf, np.float32), hyper(apply=0.0))
    assert not records.any()


@pytest.mark.parametrize("key", [-1, 3])
def test_a_key_of_no_row_is_an_error_and_writes_nothing(key: int):
    records = np.zeros((3, record_size(4)), np.float32)
    with pytest.raises(AssertionError):
        update_rows(records, np.array([0, key]), np.ones((2, 4), np.float32), hyper())
    assert not records.any()
