"""Casts to float16 are NumPy's, whatever the size and wherever the array begins."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ascend_ops.half import CastWeights

HARD = [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65520, 2.0**-24, 2.0**-25, 1.001 * 2.0**-25, 1 + 2.0**-11, 1e-40]


def values(count: int) -> np.ndarray:
    drawn = np.random.default_rng(count).standard_normal(count, np.float32)
    hard = np.array(HARD, np.float32)[:count]
    drawn[: len(hard)] = hard
    return drawn


def cast(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return array.astype(np.float16)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 65_536), (65_537, 3)])
def test_the_kernel_casts_every_piece_in_every_instruction_set(
    call_kernel_of_isa: Callable[..., int], shape: tuple[int, ...]
):
    array = values(int(np.prod(shape))).reshape(shape)
    found = np.zeros(shape, np.float16)
    assert call_kernel_of_isa("ToHalf", array, found) == 0
    np.testing.assert_array_equal(found, cast(array))


def test_the_kernel_checks_its_arrays(call_kernel: Callable[..., int]):
    single, half = np.zeros(4, np.float32), np.zeros(4, np.float16)
    assert call_kernel("ToHalf", single) == 1
    assert call_kernel("ToHalf", half, half) == call_kernel("ToHalf", single, single) == 2
    assert call_kernel("ToHalf", single, half[:3]) == 3


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_are_cast_in_a_graph(graph_mode: None, dtype: str):
    array = values(300).reshape(3, 100)
    found = CastWeights(getattr(ms, dtype))(Tensor(array)).asnumpy()
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, cast(array) if dtype == "float16" else array)
