"""The grouped FFN against float64, for experts with few rows, many and none: in every instruction set, and in a graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import scipy.special
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mindspore import Tensor

from ascend_ops.grouped_ffn import KERNELS, GroupedFFN, grouped_ffn_oracle

Call = Callable[..., int]
FEW = 128
"""kFewRows of grouped_ffn.cc: with more rows an expert is computed by GEMMs."""


def make_case(rows_A: list[int], hidden: int, ffn: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """float32 x, w1, b1, w2, b2; offsets; dy."""
    rng = np.random.default_rng(sum(rows_A) * hidden + ffn)
    experts, rows = len(rows_A), sum(rows_A)
    shapes = [(rows, hidden), (experts, ffn, hidden), (experts, ffn), (experts, ffn, hidden), (experts, hidden)]
    x, w1, b1, w2, b2 = (rng.standard_normal(shape, np.float32) for shape in shapes)
    arguments = [x, w1 / np.float32(hidden**0.5), b1, w2 / np.float32(ffn**0.5), b2]
    offsets = np.cumsum([0, *rows_A]).astype(np.int32)
    return arguments, offsets, rng.standard_normal(x.shape, np.float32)


def compute(
    call: Call, arguments: list[np.ndarray], offsets: np.ndarray, dy: np.ndarray, activation: str = "fast_gelu"
) -> list[np.ndarray]:
    """y, dx, dw1, db1, dw2, db2 of the kernels, in the dtypes of x and of the weights; what they do not write is NaN."""
    kernel = KERNELS[activation]
    x, w1, _, w2, _ = arguments
    inner, y = np.full((len(x), w1.shape[1]), np.nan, np.float32), np.full_like(x, np.nan)
    gradients = [np.full_like(a, np.nan) for a in arguments]
    assert call(kernel, *arguments, offsets, y, inner) == 0
    assert call(f"{kernel}Grad", dy, x, inner, w1, w2, offsets, *gradients) == 0
    return [y, *gradients]


def activated(x: np.ndarray, activation: str) -> tuple[np.ndarray, np.ndarray]:
    """The activation and its derivative in float64."""
    if activation == "erf":
        below = scipy.special.ndtr(x)
        return x * below, below + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    root = np.sqrt(8 / np.pi)
    z = 1.702 * x if activation == "fast_gelu" else root * (x + 0.044715 * x**3)
    slope = 1.702 if activation == "fast_gelu" else root * (1 + 3 * 0.044715 * x**2)
    s = scipy.special.expit(z)
    return x * s, s + x * slope * s * scipy.special.expit(-z)


def oracle(
    arguments: list[np.ndarray], offsets: np.ndarray, dy: np.ndarray, activation: str = "fast_gelu"
) -> list[np.ndarray]:
    """The same in float64, by the chain rule."""
    x, w1, b1, w2, b2, dy = (a.astype(np.float64) for a in (*arguments, dy))
    y, dx, dw1, db1, dw2, db2 = (np.zeros_like(a) for a in (x, x, w1, b1, w2, b2))
    for e in range(len(w1)):
        rows = slice(offsets[e], offsets[e + 1])
        inner = x[rows] @ w1[e].T + b1[e]
        gate, slope = activated(inner, activation)
        dinner = dy[rows] @ w2[e].T * slope
        y[rows], dx[rows] = gate @ w2[e] + b2[e], dinner @ w1[e]
        dw1[e], dw2[e] = dinner.T @ x[rows], gate.T @ dy[rows]
        db1[e], db2[e] = dinner.sum(0), dy[rows].sum(0)
    return [y, dx, dw1, db1, dw2, db2]


def check(call: Call, rows_A: list[int], hidden: int, ffn: int, activation: str = "fast_gelu") -> None:
    case = make_case(rows_A, hidden, ffn)
    names = ("y", "dx", "dw1", "db1", "dw2", "db2")
    for name, actual, expected in zip(names, compute(call, *case, activation), oracle(*case, activation), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-5, err_msg=name)


def halved(case: tuple[list[np.ndarray], np.ndarray, np.ndarray], rows: type, weights: type) -> tuple[Any, ...]:
    """The case with x and dy in the dtype `rows`, and the parameters in `weights`."""
    (x, *parameters), offsets, dy = case
    return [x.astype(rows), *(p.astype(weights) for p in parameters)], offsets, dy.astype(rows)


def check_rounded_once(call: Call, case: tuple[Any, ...]) -> None:
    """Of halves the kernels compute what they compute of the same numbers as floats, bit for bit, rounded once to the nearest half.

    For hidden a multiple of 16, and ffn of at most a block of columns: additions of a rest are fused in one way or another.
    """
    arguments, offsets, dy = case
    actual = compute(call, *case)
    single = compute(call, [a.astype(np.float32) for a in arguments], offsets, dy.astype(np.float32))
    with np.errstate(over="ignore"):
        expected = [value.astype(like.dtype) for value, like in zip(single, [arguments[0], *arguments], strict=True)]
    for name, of_halves, rounded in zip(("y", "dx", "dw1", "db1", "dw2", "db2"), actual, expected, strict=True):
        assert of_halves.dtype == rounded.dtype
        np.testing.assert_array_equal(of_halves, rounded, err_msg=name)


rows = st.lists(st.sampled_from([0, 1, 2, 3, 5, 8, 13]), min_size=1, max_size=5).filter(any)


@pytest.mark.parametrize("activation", KERNELS)
@settings(max_examples=30)
@given(rows_A=rows, hidden=st.integers(1, 150), ffn=st.integers(1, 90))
@example(rows_A=[FEW - 1, FEW, FEW + 1], hidden=48, ffn=40)
@example(rows_A=[FEW + 1, 0, 1, 4], hidden=64, ffn=600)  # more than a slice of 256 and than a block of 512 columns
@example(rows_A=[0, 7, 0, 0, 64, 0], hidden=64, ffn=300)  # rows that are streamed, where the array is aligned
@example(rows_A=[0, 7, 0, 0, 64, 0], hidden=67, ffn=300)  # rows that cannot be
@example(rows_A=[1], hidden=1, ffn=1)
def test_rows_are_the_float64_oracle(
    call_kernel_of_isa: Call, rows_A: list[int], hidden: int, ffn: int, activation: str
):
    check(call_kernel_of_isa, rows_A, hidden, ffn, activation)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_result_does_not_depend_on_the_number_of_threads(
    call_kernel: Call, threads_of: Callable[[int], AbstractContextManager[None]], dtype: type
):
    case = halved(make_case([5, 0, 300, 90, 1], 96, 700), dtype, dtype)
    results = []
    for threads in (1, 2, 5, 2):
        with threads_of(threads):
            results.append([array.tobytes() for array in compute(call_kernel, *case)])
    assert results[1:] == results[:-1]


def pass_on(call: Call, x: np.ndarray, activation: str) -> tuple[np.ndarray, np.ndarray]:
    """The activation of the numbers x and its derivative, through an expert that passes numbers on."""
    one, zero = np.ones((1, 1, 1), np.float32), np.zeros((1, 1), np.float32)
    offsets = np.array([0, len(x)], np.int32)
    y, dx, *_ = compute(call, [x[:, None], one, zero, one, zero], offsets, np.ones_like(x[:, None]), activation)
    return y[:, 0], dx[:, 0]


@pytest.mark.parametrize("activation", KERNELS)
def test_activations_are_those_of_float64_within_units_in_the_last_place(call_kernel_of_isa: Call, activation: str):
    """erf within 4 units; the others within 2, and within more for each unit of the exponent of e^-z, which rounding z changes.
    Up to where the result is nearly no normal number. Derivatives have zeros, so theirs are units of 1."""
    least = {"fast_gelu": -50, "tanh": -9.9, "erf": -12.9}[activation]
    x = np.concatenate([np.linspace(least, 50, 200_001), np.linspace(-1e-3, 1e-3, 1_001)]).astype(np.float32)
    unit, wide = np.finfo(np.float32).eps, x.astype(np.float64)
    allowed = {
        "fast_gelu": 2 + 1.702 * np.maximum(-wide, 0),
        "tanh": 2 + 2 * np.maximum(-np.sqrt(8 / np.pi) * (wide + 0.044715 * wide**3), 0),
        "erf": 4.0,
    }[activation]
    y, dx = pass_on(call_kernel_of_isa, x, activation)
    exact, slope = activated(wide, activation)
    assert (np.abs(y - exact) <= allowed * unit * np.abs(exact)).all()
    assert (np.abs(dx - slope) <= (9 if activation == "fast_gelu" else 4) * unit).all()


def test_beyond_the_last_normal_number_the_other_activations_are_nearly_0(call_kernel_of_isa: Call):
    x = -np.geomspace(9, 1e25, 1_001, dtype=np.float32)
    for activation in ("tanh", "erf"):
        y, dx = pass_on(call_kernel_of_isa, x, activation)
        assert (np.abs(y) <= 1e-10).all() and (np.abs(dx) <= 1e-10).all()


@pytest.mark.parametrize("activation", KERNELS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e30, -1e30])
def test_what_is_not_finite_stays_so_and_huge_numbers_do_not_overflow(
    call_kernel_of_isa: Call, value: float, activation: str
):
    x = np.full(20, value, np.float32)
    y, dx = pass_on(call_kernel_of_isa, x, activation)
    if np.isfinite(value):
        np.testing.assert_allclose(y, np.maximum(x, 0), atol=1e-6)
        np.testing.assert_allclose(dx, np.float32(value > 0), atol=1e-6)
    else:
        assert not np.isfinite(y).any()


HALVES = [(np.float16, np.float16), (np.float16, np.float32), (np.float32, np.float16)]
"""Rows and weights: mixed precision, a dense layer of it (parameters in float32), and the other way round."""


@pytest.mark.parametrize("activation", KERNELS)
@settings(max_examples=20)
@given(dtypes=st.sampled_from(HALVES), rows_A=rows, hidden=st.integers(1, 150), ffn=st.integers(1, 90))
@example(dtypes=HALVES[0], rows_A=[FEW - 1, FEW, FEW + 1], hidden=48, ffn=40)
@example(dtypes=HALVES[1], rows_A=[FEW + 1, 0, 1, 4], hidden=64, ffn=512)  # two slices of 256, a whole block of 512
@example(dtypes=HALVES[2], rows_A=[5, 0, 2, FEW + 1], hidden=96, ffn=700)  # more columns than a block of 512
@example(dtypes=HALVES[0], rows_A=[0, 7, 0, 0, 64, 0], hidden=67, ffn=300)  # an odd number of halves before each expert
@example(dtypes=HALVES[0], rows_A=[1], hidden=1, ffn=1)
def test_halves_are_the_float64_oracle_within_one_rounding(
    call_kernel_of_isa: Call, dtypes: tuple[type, type], rows_A: list[int], hidden: int, ffn: int, activation: str
):
    case = halved(make_case(rows_A, hidden, ffn), *dtypes)
    check_halves(call_kernel_of_isa, case, activation)
    if hidden % 16 == 0 and ffn <= 512 and activation == "fast_gelu":
        check_rounded_once(call_kernel_of_isa, case)


def check_halves(call: Call, case: tuple[Any, ...], activation: str = "fast_gelu") -> None:
    """Half a unit in the last place, 2⁻¹¹ of a number or 2⁻²⁵, beside what float32 is allowed above."""
    likes = [case[0][0], *case[0]]
    found_and_expected = zip(compute(call, *case, activation), oracle(*case, activation), likes, strict=True)
    for actual, expected, like in found_and_expected:
        assert actual.dtype == like.dtype
        once, least = (2.0**-11, 2.0**-25) if actual.dtype == np.float16 else (0.0, 0.0)
        np.testing.assert_allclose(actual, expected, rtol=once + 1e-5, atol=least + 2e-5)


@pytest.mark.parametrize("rows", [3, FEW + 2])
def test_subnormal_infinite_and_huge_halves_go_where_floats_go(call_kernel_of_isa: Call, rows: int):
    """Subnormal weights, whose smallest is 2⁻²⁴, and gradients; one value that is not finite; gradients beyond the largest
    half, which are infinite, so that a step sees them and skips the update."""
    (x, w1, b1, w2, b2), offsets, dy = halved(make_case([rows], 48, 24), np.float16, np.float16)
    tiny = (np.arange(w1.size) % 1024).astype(np.uint16).view(np.float16).reshape(w1.shape)
    subnormal = [x, tiny, np.ones_like(b1), tiny, np.zeros_like(b2)], offsets, dy * np.float16(2.0**-14)
    check_rounded_once(call_kernel_of_isa, subnormal)
    y, _, _, _, dw2, _ = compute(call_kernel_of_isa, *subnormal)
    assert (y > 0).all(), "of weights that are all subnormal, one in 1024 of them zero"
    assert 0 < np.abs(dw2[dw2 != 0]).min() < np.finfo(np.float16).smallest_normal
    huge = [x, w1, b1, w2, b2], offsets, np.full_like(dy, 60_000)
    check_rounded_once(call_kernel_of_isa, huge)
    assert any(np.isinf(array).any() for array in compute(call_kernel_of_isa, *huge)[1:])
    for position, value in itertools.product(range(5), (np.inf, -np.inf, np.nan)):
        case = halved(make_case([rows, 2], 48, 24), np.float16, np.float16)
        case[0][position].flat[7] = value
        with np.errstate(invalid="ignore"):
            check_rounded_once(call_kernel_of_isa, case)
        assert not all(np.isfinite(array).all() for array in compute(call_kernel_of_isa, *case))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("rows_A", [[3, 0, 4], [200, 3], [0, 0]], ids=str)
def test_rows_of_no_expert_are_not_read_and_become_zeros(call_kernel: Call, rows_A: list[int], dtype: type):
    """The bits of all others are those of a call without these rows; few rows and many, an output that held something before."""
    (x, w1, b1, w2, b2), offsets, _ = make_case(rows_A, 6, 10)
    rows, more = len(x), 150

    def called(with_more: int) -> list[np.ndarray]:
        wide, inner = (np.full((rows + with_more, width), np.nan, np.float32) for width in (6, 10))
        wide[:rows] = x
        floats = [a.astype(dtype) for a in (wide, w1, b1, w2, b2)]
        y, *gradients = (np.full_like(a, np.nan) for a in (floats[0], *floats))
        assert call_kernel("GroupedFfn", *floats, offsets, y, inner) == 0
        inputs = [floats[0], floats[0], inner, floats[1], floats[3], offsets]
        assert call_kernel("GroupedFfnGrad", *inputs, *gradients) == 0
        return [y, *gradients]

    for actual, alone in zip(called(more), called(0), strict=True):
        assert actual[: len(alone)].tobytes() == alone.tobytes()
        assert not actual[len(alone) :].any()


def with_gradients(
    arguments: list[np.ndarray], offsets: np.ndarray, dy: np.ndarray, activation: str
) -> list[np.ndarray]:
    """y of the graph, and the gradients of sum(y · dy) with respect to x, w1, b1, w2, b2."""
    ffn, weight = GroupedFFN(activation), Tensor(dy.astype(np.float32))

    def weighted_sum(x, w1, b1, w2, b2, offsets):
        y = ffn(x, w1, b1, w2, b2, offsets)
        return (y.astype(ms.float32) * weight).sum(), y

    differentiate = ms.value_and_grad(weighted_sum, grad_position=(0, 1, 2, 3, 4), has_aux=True)
    (_, y), gradients = differentiate(*map(Tensor, arguments), Tensor(offsets))
    return [y.asnumpy(), *(gradient.asnumpy() for gradient in gradients)]


@pytest.mark.parametrize(
    ("activation", "dtypes"),
    [*((name, (np.float32, np.float32)) for name in KERNELS), *(("erf", h) for h in HALVES[:2])],
)
def test_in_a_graph_it_is_the_oracle_with_its_gradients_in_the_dtypes_of_rows_and_weights(
    graph_mode: None, activation: str, dtypes: tuple[type, type]
):
    """A float16 network reads float16 experts, and the float32 parameters of its dense layers."""
    arguments, offsets, dy = halved(make_case([0, 4, 0, 0, 5, 0], 6, 10), *dtypes)
    results = with_gradients(arguments, offsets, dy, activation)
    assert [a.dtype for a in results] == [a.dtype for a in (arguments[0], *arguments)]
    expected = oracle(arguments, offsets, dy, activation)
    for actual, exact in zip(results, expected, strict=True):
        np.testing.assert_allclose(actual, exact, rtol=2.0**-11 + 1e-4, atol=1e-4)
    assert not any(of_experts[[0, 2, 3, 5]].any() for of_experts in results[2:]), "exactly zero without rows"
    wide = [a.astype(np.float64) for a in arguments]
    np.testing.assert_allclose(grouped_ffn_oracle(*wide, offsets, activation), expected[0], rtol=1e-9, atol=1e-9)


def test_a_failed_check_is_a_runtime_error_that_names_the_function(
    graph_mode: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # MindSpore leaves an analysis of the failed graph in the working directory
    arguments, *_ = make_case([3, 6], 6, 10)
    with pytest.raises(RuntimeError, match="GroupedFfn"):
        GroupedFFN("fast_gelu")(*map(Tensor, arguments), Tensor(np.array([0, 3, 10], np.int32))).asnumpy()
