"""The compiled grouped FFN is the oracle, forward and backward, whatever the experts' shares of the rows are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ascend_ops.grouped_ffn import KERNELS, GroupedFFN, grouped_ffn_oracle

HIDDEN, FFN = 6, 10
ROWS_OF_EXPERTS = [0, 4, 0, 0, 5, 0]


def make_case(rows_A: list[int]) -> tuple[list[np.ndarray], np.ndarray]:
    """float64 arguments x, w1, b1, w2, b2 and int32 offsets."""
    rng = np.random.default_rng(len(rows_A))
    experts, rows = len(rows_A), sum(rows_A)
    shapes = [(rows, HIDDEN), (experts, FFN, HIDDEN), (experts, FFN), (experts, FFN, HIDDEN), (experts, HIDDEN)]
    return [rng.normal(size=shape) for shape in shapes], np.cumsum([0, *rows_A]).astype(np.int32)


def run(arguments: list[np.ndarray], offsets: np.ndarray, activation: str = "fast_gelu") -> np.ndarray:
    tensors = [Tensor(a.astype(np.float32)) for a in arguments]
    return GroupedFFN(activation)(*tensors, Tensor(offsets)).asnumpy()


def gradients(
    arguments: list[np.ndarray], offsets: np.ndarray, dy: np.ndarray, activation: str = "fast_gelu"
) -> list[np.ndarray]:
    """Of sum(y · dy) with respect to x, w1, b1, w2, b2."""
    op, weight = GroupedFFN(activation), Tensor(dy.astype(np.float32))

    def weighted_sum(x, w1, b1, w2, b2, offsets):
        return (op(x, w1, b1, w2, b2, offsets) * weight).sum()

    differentiate = ms.grad(weighted_sum, grad_position=(0, 1, 2, 3, 4))
    tensors = [Tensor(a.astype(np.float32)) for a in arguments]
    return [g.asnumpy() for g in differentiate(*tensors, Tensor(offsets))]


def finite_differences(
    arguments: list[np.ndarray], offsets: np.ndarray, dy: np.ndarray, activation: str = "fast_gelu"
) -> list[np.ndarray]:
    """Central differences of the oracle in float64."""
    step = 1e-6
    result = []
    for array in arguments:
        slope = np.empty_like(array)
        for index in np.ndindex(array.shape):
            kept, sides = array[index], []
            for value in (kept + step, kept - step):
                array[index] = value
                sides.append((grouped_ffn_oracle(*arguments, offsets, activation) * dy).sum())
            array[index] = kept
            slope[index] = (sides[0] - sides[1]) / (2 * step)
        result.append(slope)
    return result


@pytest.mark.parametrize("activation", KERNELS)
def test_each_activation_is_the_oracle_and_its_gradient_the_slope(graph_mode: None, activation: str):
    arguments, offsets = make_case(ROWS_OF_EXPERTS)
    expected = grouped_ffn_oracle(*arguments, offsets, activation)
    np.testing.assert_allclose(run(arguments, offsets, activation), expected, rtol=1e-5, atol=1e-5)
    others = [grouped_ffn_oracle(*arguments, offsets, other) for other in KERNELS if other != activation]
    assert all(np.abs(expected - other).max() > 1e-3 for other in others), "another function"
    dy = np.random.default_rng(1).normal(size=arguments[0].shape)
    slopes = finite_differences(arguments, offsets, dy, activation)
    actual = gradients(arguments, offsets, dy, activation)
    for gradient, slope in zip(actual, slopes, strict=True):
        np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-4)
    assert not any(of_experts[np.array(ROWS_OF_EXPERTS) == 0].any() for of_experts in actual[1:]), "exactly zero"


@pytest.mark.parametrize("weights", [np.float16, np.float32])
def test_rows_and_gradients_come_back_in_the_dtypes_of_what_they_belong_to(graph_mode: None, weights: type):
    """A float16 network reads float16 experts, and the float32 parameters of its dense layers."""
    (x, *parameters), offsets = make_case([3, 0, 4])
    arguments = [x.astype(np.float16), *(p.astype(weights) for p in parameters)]
    op = GroupedFFN()

    def total(x, w1, b1, w2, b2, offsets):
        y = op(x, w1, b1, w2, b2, offsets)
        return y.astype(ms.float32).sum(), y

    differentiate = ms.value_and_grad(total, grad_position=(0, 1, 2, 3, 4), has_aux=True)
    (_, y), gradients = differentiate(*map(Tensor, arguments), Tensor(offsets))
    assert y.dtype == ms.float16
    assert [g.asnumpy().dtype for g in gradients] == [a.dtype for a in arguments]
    wide = [a.astype(np.float64) for a in arguments]
    np.testing.assert_allclose(y.asnumpy(), grouped_ffn_oracle(*wide, offsets), rtol=2.0**-11 + 1e-5, atol=1e-5)
    slopes = finite_differences(wide, offsets, np.ones_like(x))
    for found, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(found.asnumpy(), slope, rtol=2.0**-11 + 1e-4, atol=1e-4)


def kernel_arrays(offsets: list[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Inputs and outputs of the forward and of the backward kernel for 9 rows and 2 experts."""
    (x, w1, b1, w2, b2), _ = make_case([3, 6])
    inner, o = np.zeros((9, FFN)), np.array(offsets, np.int32)
    forward, backward = [x, w1, b1, w2, b2, o, x, inner], [x, x, inner, w1, w2, o, x, w1, b1, w2, b2]
    single, wrote = np.float32, slice(6, None)
    both = [[a if a is o else a.astype(single) for a in arrays] for arrays in (forward, backward)]
    for arrays in both:
        arrays[wrote] = [np.zeros_like(a) for a in arrays[wrote]]
    return both[0], both[1]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("rows_A", [[3, 0, 4], [200, 3], [0, 0]], ids=str)
def test_rows_of_no_expert_are_not_read_and_become_zeros(
    call_kernel: Callable[..., int], rows_A: list[int], dtype: type
):
    """The bits of all others are those of a call without these rows; few rows and many, an output that held something before."""
    (x, w1, b1, w2, b2), offsets = make_case(rows_A)
    rows, more = len(x), 150

    def called(with_more: int) -> list[np.ndarray]:
        wide, inner = (np.full((rows + with_more, width), np.nan, np.float32) for width in (HIDDEN, FFN))
        wide[:rows] = x
        floats = [a.astype(dtype) for a in (wide, w1, b1, w2, b2)]
        y, *gradients = (np.full_like(a, np.nan) for a in (floats[0], *floats))
        assert call_kernel("GroupedFfn", *floats, offsets, y, inner) == 0
        inputs = [floats[0], floats[0], inner, floats[1], floats[3], offsets]
        assert call_kernel("GroupedFfnGrad", *inputs, *gradients) == 0
        return [y, *gradients]

    for found, alone in zip(called(more), called(0), strict=True):
        assert found[: len(alone)].tobytes() == alone.tobytes()
        assert not found[len(alone) :].any()


@pytest.mark.parametrize("name", ["GroupedFfn", "GroupedFfnGrad"])
def test_kernels_check_number_dtypes_sizes_and_offsets(call_kernel: Callable[..., int], name: str):
    def called(offsets: Sequence[int] = (0, 3, 9), change: Callable[[list], object] = lambda arrays: None) -> int:
        arrays = kernel_arrays([*offsets])[name == "GroupedFfnGrad"]
        change(arrays)
        return call_kernel(name, *arrays)

    def cast(position: int, dtype: type) -> Callable[[list], object]:
        return lambda arrays: arrays.__setitem__(position, arrays[position].astype(dtype))

    assert called() == called([0, 0, 9]) == called([0, 3, 8]) == 0
    for offsets in ([1, 3, 9], [0, 3, 10], [0, 10, 9], [0, -1, 9], [0, 9], [0, 3, 9, 9]):
        assert called(offsets) == 3, offsets
    assert called(change=lambda arrays: arrays.pop()) == 1
    assert {called(change=cast(*fault)) for fault in ((0, np.float16), (5, np.int64), (4, np.float64))} == {2}
    for short in (0, 2, 4):

        def shorten(arrays: list, short: int = short) -> None:
            arrays[short] = np.ascontiguousarray(arrays[short][..., :-1])

        assert called(change=shorten) == 3


def test_a_failed_check_is_a_runtime_error_that_names_the_function(
    graph_mode: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # MindSpore leaves an analysis of the failed graph in the working directory
    arguments, _ = make_case([3, 6])
    with pytest.raises(RuntimeError, match="GroupedFfn"):
        run(arguments, np.array([0, 3, 10], np.int32))
