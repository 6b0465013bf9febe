"""Kernels check their inputs before they read one: the number of arrays (1), dtypes (2), sizes and offsets (3), indices (4)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest


def calls() -> dict[str, list[np.ndarray]]:
    """Good arrays for each kernel, inputs and then outputs."""

    def floats(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)

    def numbers(*values: int) -> np.ndarray:
        return np.array(values, np.int32)

    weights = [floats(2, 5, 3), floats(2, 5), floats(2, 5, 3), floats(2, 3)]
    w1, _, w2, _ = weights
    return {
        "AdamRows": [
            *(floats(4, 6) for _ in "wmv"),
            floats(2, 6),
            numbers(0, 0, 0, 0),
            numbers(1, 3),
            numbers(0, 1, 2),
            floats(6),
            floats(1),
            floats(1),
        ],
        "SquareSum": [floats(3), floats(4, 2), floats(1)],
        "ToHalf": [floats(4), np.zeros(4, np.float16)],
        "Dropout": [floats(5, 8), np.zeros((5, 4), np.int32), numbers(0, 9), floats(5, 8)],
        "GroupedFfn": [floats(9, 3), *weights, numbers(0, 4, 9), floats(9, 3), floats(9, 5)],
        "GroupedFfnGrad": [
            floats(9, 3), floats(9, 3), floats(9, 5), w1, w2, numbers(0, 4, 9), floats(9, 3), *map(np.zeros_like, weights),
        ],
        "ExpertDispatch": [floats(4, 2), numbers(0, 3), floats(2, 2)],
        "ExpertCombine": [floats(4, 2), numbers(0, 3), floats(2, 2), floats(2, 2)],
    }  # fmt: skip


def longer(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array, array[..., :1]], axis=-1)


INPUTS = {
    "AdamRows": 9, "SquareSum": 2, "ToHalf": 1, "Dropout": 3, "GroupedFfn": 6, "GroupedFfnGrad": 6,
    "ExpertDispatch": 2, "ExpertCombine": 3,
}  # fmt: skip
"""How many of the arrays are inputs; MindSpore allocates the outputs by the front's shapes."""


@pytest.mark.parametrize("name", INPUTS)
def test_a_kernel_refuses_another_number_other_dtypes_and_other_sizes(call_kernel: Callable[..., int], name: str):
    arrays = calls()[name]
    assert call_kernel(name, *arrays) == 0
    assert call_kernel(name, *arrays[:1]) == 1
    for position in range(INPUTS[name]):
        before, array, after = arrays[:position], arrays[position], arrays[position + 1 :]
        assert call_kernel(name, *before, array.astype(np.float64), *after) == 2, position
        refused = 0 if name == "SquareSum" else 3  # which adds tensors of any size
        assert call_kernel(name, *before, longer(array), *after) == refused, position


def test_offsets_that_do_not_cut_the_rows_and_indices_past_the_end_are_refused(call_kernel: Callable[..., int]):
    for name in ("GroupedFfn", "GroupedFfnGrad"):
        arrays = calls()[name]
        for offsets, check in (
            *(([0, 0, 9], 0), ([0, 3, 8], 0)),  # rows of no expert at the end
            *((bad, 3) for bad in ([1, 3, 9], [0, 3, 10], [0, 10, 9], [0, -1, 9], [0, 9], [0, 3, 9, 9])),
        ):
            assert call_kernel(name, *arrays[:5], np.array(offsets, np.int32), *arrays[6:]) == check, offsets
    for name in ("ExpertDispatch", "ExpertCombine"):
        rows, _, *others = calls()[name]
        assert call_kernel(name, rows, np.array([0, 4], np.int32), *others) == 4
    x, _, settings, y = calls()["Dropout"]
    assert call_kernel("Dropout", x[:4], np.zeros((5, 4), np.int32), settings, y[:4]) == 4, "four sequences, five draws"


def test_adam_refuses_moments_of_two_dtypes_float16_and_a_store_without_rows(call_kernel: Callable[..., int]):
    w, m, v, *others = calls()["AdamRows"]
    for dtypes in ((np.uint16, np.float32), (np.float16, np.float16)):
        assert call_kernel("AdamRows", w, m.astype(dtypes[0]), v.astype(dtypes[1]), *others) == 2
    grad, _, *lists = others
    assert call_kernel("AdamRows", w[:0], m[:0], v[:0], grad, np.zeros(0, np.int32), *lists) == 3
