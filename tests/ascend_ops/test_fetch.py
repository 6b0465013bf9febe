"""Rows of a host store in the precision of the device, and back as gradients: bfloat16 is the half type of 910B."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, nn

from ascend_ops.adam import HYPER, AdamRows
from ascend_ops.fetch import FetchRows

pytestmark = pytest.mark.usefixtures("graph_mode")
RNG = np.random.default_rng(0)


def parameter(name: str, values: np.ndarray) -> ParameterTuple:
    return ParameterTuple([Parameter(Tensor(values), name=name)])


class Fetch(nn.Cell):
    def __init__(self, w: np.ndarray):
        super().__init__()
        self.fetch, self.w = FetchRows(1), parameter("w", w)

    def construct(self, active_A, like):
        return self.fetch(self.w, active_A, (like,))[0]


class Update(nn.Cell):
    def __init__(self, w: np.ndarray):
        super().__init__()
        self.adam, self.w = AdamRows(), parameter("w", w)
        self.m, self.v = (parameter(name, np.zeros_like(w)) for name in ("m", "v"))
        self.step = Parameter(Tensor(np.zeros(len(w), np.int32)), name="step")

    def construct(self, grad, active_A, offsets_A1, hyper, decay):
        return self.adam(self.w, self.m, self.v, (grad,), self.step, active_A, offsets_A1, hyper, decay)


@pytest.mark.parametrize("dtype", [ms.float32, ms.float16, ms.bfloat16])
def test_rows_are_rounded_to_the_dtype_asked_for_and_an_unused_entry_is_zeros(dtype: ms.Type):
    w = RNG.normal(size=(5, 40)).astype(np.float32)
    found = Fetch(w)(Tensor(np.array([4, 0, 5], np.int32)), Tensor(np.zeros((3, 40), np.float32)).astype(dtype))
    expected = Tensor(np.concatenate([w[[4, 0]], np.zeros((1, 40), np.float32)])).astype(dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(*(each.astype(ms.float32).asnumpy() for each in (found, expected)))


def test_gradients_in_bfloat16_are_taken_as_the_numbers_that_they_are():
    w, grad = RNG.normal(size=(5, 40)).astype(np.float32), Tensor(RNG.normal(size=(2, 40)).astype(np.float32))
    hyper = np.zeros(len(HYPER), np.float32)
    for name, value in {"lr": 0.1, "grad_scale": 1, "apply": 1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}.items():
        hyper[HYPER.index(name)] = value
    found = []
    for dtype in (ms.bfloat16, ms.float32):  # the same numbers, in both dtypes
        cell, numbers = Update(w), grad.astype(ms.bfloat16).astype(dtype)
        rows = Tensor(np.array([1, 3], np.int32)), Tensor(np.array([0, 2, 5], np.int32))
        assert cell(numbers, *rows, Tensor(hyper), Tensor(np.zeros(1, np.float32))).asnumpy() == 2
        found.append([each[0].asnumpy() for each in (cell.w, cell.m, cell.v)])
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (found[0][0] != w).any(axis=1).tolist() == [False, True, False, True, False]
