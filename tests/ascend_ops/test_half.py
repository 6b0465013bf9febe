"""Casts to float16 are NumPy's, whatever the size and wherever the array begins."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ascend_ops.half import CastWeights


def hard_floats() -> np.ndarray:
    """Every half, the middles between two, and the floats beside them; any other floats."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = np.unique(every[np.isfinite(every)]).astype(np.float32)
    middles = (halves[1:] + halves[:-1]) / 2
    boundaries = np.concatenate([halves, middles, [65520, np.inf, -np.inf, np.nan]]).astype(np.float32)
    neighbours = [np.nextafter(boundaries, np.float32(towards)) for towards in (np.inf, -np.inf)]
    random = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32)
    return np.concatenate([random, boundaries, *neighbours])


FLOATS = hard_floats()


def cast(array: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return array.astype(np.float16)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 65_536), (65_537, 3), FLOATS.shape])
def test_the_kernel_casts_every_piece_in_every_instruction_set(
    call_kernel_of_isa: Callable[..., int], shape: tuple[int, ...]
):
    array, halves = FLOATS[: np.prod(shape)].reshape(shape), np.zeros(shape, np.float16)
    assert call_kernel_of_isa("ToHalf", array, halves) == 0
    np.testing.assert_array_equal(halves, cast(array))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_are_cast_in_a_graph(graph_mode: None, dtype: str):
    array = FLOATS[-300:].reshape(3, 100)
    weights = CastWeights(getattr(ms, dtype))(Tensor(array)).asnumpy()
    assert weights.dtype == dtype
    np.testing.assert_array_equal(weights, cast(array) if dtype == "float16" else array)
