"""Adam on host rows: the float64 oracle on the rows that were used, and not one bit of difference on the others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from helpers.kernel_cases import from_bfloat16, to_bfloat16
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Parameter, ParameterTuple, Tensor, nn

from ascend_ops.adam import AdamRows, adam_oracle, every_row

HYPER = {"lr": 1e-2, "grad_scale": 0.5, "apply": 1.0, "beta1": 0.8, "beta2": 0.95, "eps": 1e-20}


class Store:
    """K rows of one tensor [K, P] with its Adam state, and the kernel called on it."""

    def __init__(
        self, call_kernel: Callable[..., int], rows: int, width: int = 5, seed: int = 0, moments: type = np.float32
    ):
        self.rng = np.random.default_rng(seed)
        self.w = self.rng.normal(size=(rows, width)).astype(np.float32)
        self.m, self.v = (np.zeros((rows, width), moments) for _ in range(2))
        self.step = np.zeros(rows, np.int32)
        self.call = call_kernel

    def state(self) -> list[np.ndarray]:
        return [self.w, self.m, self.v, self.step]

    def update(
        self,
        grad: np.ndarray,
        active: list[int],
        tokens: list[int],
        decay: float = 0.0,
        **hyper: float,
    ) -> tuple[int, float]:
        """tokens: of each active entry. Returns the number of the failed check and the rows updated."""
        values = np.array(list({**HYPER, **hyper}.values()), np.float32)
        offsets, updated = np.cumsum([0, *tokens]).astype(np.int32), np.full(1, -1.0, np.float32)
        entries, decays = np.array(active, np.int32), np.array([decay], np.float32)
        self.grad = grad if grad.dtype == np.float16 else grad.astype(np.float32)
        arrays = [self.w, self.m, self.v, self.grad]
        rest = [values, decays, updated]
        return self.call("AdamRows", *arrays, self.step, entries, offsets, *rest), float(updated[0])


def oracle(w, m, v, t, grad, **hyper) -> tuple[np.ndarray, ...]:
    values = {**HYPER, "weight_decay": 0.0, **hyper}
    del values["apply"]
    # The kernel receives float32: the oracle takes the same numbers.
    return adam_oracle(w, m, v, t, grad, **{name: float(np.float32(value)) for name, value in values.items()})


def bits(arrays: list[np.ndarray]) -> list[bytes]:
    return [array.tobytes() for array in arrays]


@settings(deadline=None, max_examples=60)
@given(data=st.data(), rows=st.integers(1, 6), seed=st.integers(0, 999))
def test_used_rows_follow_the_oracle_by_their_own_step_count_and_others_keep_every_bit(
    call_kernel: Callable[..., int], data: st.DataObject, rows: int, seed: int
):
    store = Store(call_kernel, rows, seed=seed)
    exact = [list(row) for row in zip(*(a.astype(np.float64) for a in (store.w, store.m, store.v)), strict=True)]
    for _ in range(4):
        active = data.draw(st.lists(st.integers(0, rows - 1), unique=True, min_size=1).map(sorted))
        tokens = data.draw(st.lists(st.integers(0, 3), min_size=len(active), max_size=len(active)))
        used = [row for row, count in zip(active, tokens, strict=True) if count]
        before = [a.copy() for a in store.state()]
        grad = store.rng.normal(size=(len(active), 5)).astype(np.float32)
        assert store.update(grad, active, tokens, decay=0.1) == (0, len(used))
        for row in range(rows):
            if row in used:
                gradient = grad[active.index(row)]
                exact[row] = list(oracle(*exact[row], store.step[row], gradient, weight_decay=0.1))
                assert store.step[row] == before[3][row] + 1
            else:
                assert bits([a[row] for a in store.state()]) == bits([a[row] for a in before])
            for found, expected in zip((store.w[row], store.m[row], store.v[row]), exact[row], strict=True):
                np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_a_row_longer_than_one_piece_of_the_parallel_loop(call_kernel: Callable[..., int]):
    store = Store(call_kernel, 3, width=40_001)
    w, grad = store.w.copy(), store.rng.normal(size=(2, 40_001)).astype(np.float32)
    store.update(grad, [0, 2], [1, 1])
    for entry, row in enumerate([0, 2]):
        np.testing.assert_allclose(store.w[row], oracle(w[row], 0, 0, 1, grad[entry])[0], rtol=1e-5, atol=1e-6)
    assert store.w[1].tobytes() == w[1].tobytes()


@pytest.mark.parametrize("size", [1e-15, 1e-10, 1.0, 1e10, 1e15])
def test_gradients_far_above_epsilon_move_a_weight_by_the_learning_rate(call_kernel: Callable[..., int], size: float):
    """The first step of Adam is lr · sign(g), and ε = 1e-20 does not hold back even a gradient of 1e-15."""
    store = Store(call_kernel, 1)
    w, grad = store.w.copy(), store.rng.choice([-1.0, 1.0], (1, 5)) * size
    store.update(grad, [0], [1])
    np.testing.assert_allclose(store.w, w - 1e-2 * np.sign(grad), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(store.w[0], oracle(w[0], 0, 0, 1, grad[0])[0], rtol=1e-4, atol=1e-6)


def test_apply_0_changes_nothing_even_with_gradients_that_are_not_numbers(call_kernel: Callable[..., int]):
    store = Store(call_kernel, 2)
    store.update(np.ones((2, 5)), [0, 1], [1, 1])
    before = bits(store.state())
    assert store.update(np.full((2, 5), np.nan), [0, 1], [1, 1], decay=0.1, apply=0.0) == (0, 0)
    assert bits(store.state()) == before


def test_sizes_and_dtypes_that_do_not_fit_are_refused(call_kernel: Callable[..., int]):
    store = Store(call_kernel, 2)
    before = bits(store.state())
    assert store.update(np.ones((2, 4)), [0, 1], [1, 1])[0] == 3
    assert store.update(np.ones((2, 5)), [0, 1], [1])[0] == 3
    assert bits(store.state()) == before
    store.m = store.m.astype(np.float64)
    assert store.update(np.ones((2, 5)), [0, 1], [1, 1])[0] == 2


@pytest.mark.parametrize("width", [5, 2049])
def test_a_half_gradient_is_the_float_that_it_says(call_kernel: Callable[..., int], width: int):
    """Also the subnormal and the largest ones; the width leaves a rest after whole vectors and whole blocks."""
    halves, floats = Store(call_kernel, 2, width), Store(call_kernel, 2, width)
    for _ in range(3):
        grad = halves.rng.normal(size=(2, width)) * 10.0 ** halves.rng.integers(-8, 5, (2, width))
        grad = np.clip(grad, -65504, 65504).astype(np.float16)
        assert (np.abs(grad) < 6e-5).any()
        assert halves.update(grad, [0, 1], [1, 1]) == floats.update(grad.astype(np.float32), [0, 1], [1, 1]) == (0, 2)
    assert bits(halves.state()) == bits(floats.state())
    assert list(halves.step) == [3, 3]


@settings(deadline=None, max_examples=30)
@given(width=st.sampled_from([1, 5, 16, 33, 2050]), seed=st.integers(0, 999), half=st.booleans())
def test_bfloat16_moments_are_the_oracles_rounded_after_every_step(
    call_kernel: Callable[..., int], width: int, seed: int, half: bool
):
    """From the stored moments the float64 step, then to the nearest bfloat16; the weight moves by the moments before rounding."""
    store = Store(call_kernel, 3, width, seed, np.uint16)
    for t in range(1, 6):
        before = [a.copy() for a in store.state()]
        grad = store.rng.normal(size=(2, width)).astype(np.float16 if half else np.float32)
        assert store.update(grad, [0, 2], [1, 2], decay=0.1) == (0, 2)
        for entry, row in enumerate((0, 2)):
            stored = [from_bfloat16(a[row]) for a in before[1:3]]
            w, *moments = oracle(before[0][row], *stored, t, grad[entry], weight_decay=0.1)
            np.testing.assert_allclose(store.w[row], w, rtol=2e-6, atol=1e-7)
            g = np.abs(grad[entry].astype(np.float64))
            for found, exact, old, new in zip((store.m, store.v), moments, stored, (g, g * g), strict=True):
                slack = 3e-7 * (np.abs(old) + new)  # of float32
                assert (from_bfloat16(to_bfloat16(exact - slack)) <= from_bfloat16(found[row])).all()
                assert (from_bfloat16(found[row]) <= from_bfloat16(to_bfloat16(exact + slack))).all()
        assert bits([a[1] for a in store.state()]) == bits([a[1] for a in before])


def test_bfloat16_moments_of_gradients_that_are_not_numbers_stay_so(call_kernel: Callable[..., int]):
    """NaN does not round to infinity, nor infinity to a number: whoever looks sees what happened."""
    store = Store(call_kernel, 1, 3, moments=np.uint16)
    store.update(np.array([[np.nan, np.inf, 1.0]]), [0], [1])
    assert np.isnan(from_bfloat16(store.m)[0]).tolist() == [True, False, False]
    assert np.isinf(from_bfloat16(store.m)[0]).tolist() == [False, True, False]
    assert np.isinf(from_bfloat16(store.v)[0]).tolist() == [False, True, False]


@pytest.mark.parametrize("active", [[0, 2], [-1, 0]])
@pytest.mark.parametrize("tokens", [[1, 1], [0, 0]])
def test_a_row_that_does_not_exist_is_refused_before_anything_changes(
    call_kernel: Callable[..., int], active: list[int], tokens: list[int]
):
    store = Store(call_kernel, 2)
    before = bits(store.state())
    assert store.update(np.ones((2, 5)), active, tokens) == ((4, -1) if any(tokens) else (0, 0))
    assert bits(store.state()) == before


def call_arrays(**changes: np.ndarray) -> list[np.ndarray]:
    """A good call of AdamRows, but for the arrays of `changes`."""
    good = {
        **{name: np.zeros((4, 6), np.float32) for name in ("w", "m", "v")},
        "grad": np.zeros((2, 6), np.float32),
        "step": np.zeros(4, np.int32),
        "active": np.array([1, 3], np.int32),
        "offsets": np.array([0, 1, 2], np.int32),
        "hyper": np.array(list(HYPER.values()), np.float32),
        "decay": np.zeros(1, np.float32),
        "updated": np.zeros(1, np.float32),
    }
    assert set(changes) <= set(good)
    return list({**good, **changes}.values())


BAD_DTYPES = {
    "w": np.float16, "m": np.uint16, "v": np.uint16, "grad": np.uint16, "step": np.int64, "active": np.int64,
    "offsets": np.int64, "hyper": np.float64, "decay": np.float64,
}  # fmt: skip
BAD_SHAPES = {
    "w": (4, 5), "m": (4, 5), "v": (3, 6), "grad": (2, 5), "step": (5,), "active": (3,), "offsets": (2,),
    "hyper": (5,), "decay": (2,),
}  # fmt: skip


def test_every_array_of_another_dtype_or_size_is_refused(call_kernel: Callable[..., int]):
    assert call_kernel("AdamRows", *call_arrays()) == 0
    good = dict(zip([*BAD_DTYPES, "updated"], call_arrays(), strict=True))
    for name, dtype in BAD_DTYPES.items():
        assert call_kernel("AdamRows", *call_arrays(**{name: good[name].astype(dtype)})) == 2, name
    for name, shape in BAD_SHAPES.items():
        assert call_kernel("AdamRows", *call_arrays(**{name: np.zeros(shape, good[name].dtype)})) == 3, name
    moments = {name: np.zeros((4, 6), np.float16) for name in ("m", "v")}
    assert call_kernel("AdamRows", *call_arrays(**moments)) == 2, "float16 is not bfloat16"
    uneven = {name: np.zeros(size, np.float32) for name, size in (("w", 6), ("m", 6), ("v", 6), ("grad", 3))}
    assert call_kernel("AdamRows", *call_arrays(**uneven)) == 3, "six elements are no four rows"
    none = {name: np.zeros((0, 6), np.float32) for name in ("w", "m", "v")} | {"step": np.zeros(0, np.int32)}
    assert call_kernel("AdamRows", *call_arrays(**none)) == 3, "a store without rows"
    assert call_kernel("AdamRows", *call_arrays()[1:]) == 1


def square_sum(call_kernel: Callable[..., int], *tensors: np.ndarray) -> np.float32:
    total = np.full(1, -1.0, np.float32)
    assert call_kernel("SquareSum", *tensors, total) == 0
    return total[0]


def tensors_of(rng: np.random.Generator, dtype: type = np.float32) -> list[np.ndarray]:
    """Of all ranks, longer and shorter than a piece of the parallel loop, of sizes that are far apart."""
    shapes: list[tuple[int, ...]] = [(), (1,), (7, 3), (0, 4), (40_001,), (3, 16384)]
    low = -3 if dtype == np.float16 else -12
    return [np.asarray(rng.normal(size=s) * 10.0 ** rng.integers(low, 3, s), dtype) for s in shapes]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_sum_of_squares_is_that_of_float64(call_kernel: Callable[..., int], dtype: type):
    tensors = tensors_of(np.random.default_rng(0), dtype)
    exact = sum((t.astype(np.float64) ** 2).sum() for t in tensors)
    assert square_sum(call_kernel, *tensors) == pytest.approx(exact, rel=1e-6)
    mixed = [*tensors, *tensors_of(np.random.default_rng(1))]
    exact += sum((t.astype(np.float64) ** 2).sum() for t in mixed[len(tensors) :])
    assert square_sum(call_kernel, *mixed) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("position", [0, 16383, 16384, 40_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_one_element_that_is_not_finite_shows_in_the_sum_of_squares(
    call_kernel: Callable[..., int], dtype: type, position: int
):
    values = np.ones(40_001, dtype)
    for found in (np.inf, -np.inf):
        values[position] = found
        assert square_sum(call_kernel, values) == np.inf
    values[position] = np.nan
    assert np.isnan(square_sum(call_kernel, values))


def test_squares_that_float32_cannot_hold_are_added_all_the_same(call_kernel: Callable[..., int]):
    """1e19 squared is near the end of float32 and 2e-23 squared below its start; only the sum has to fit."""
    assert square_sum(call_kernel, np.full(3, 1e19, np.float32)) == pytest.approx(3e38, rel=1e-6)
    assert square_sum(call_kernel, np.full(1_000_000, 2e-23, np.float32)) == pytest.approx(4e-40, rel=1e-5)
    assert square_sum(call_kernel, np.full(3, 1e30, np.float32)) == np.inf, "an overflow: the step is skipped"
    one = np.ones(200_000, np.float32)
    one[1:] = 1e-4
    assert square_sum(call_kernel, one) == pytest.approx(1 + 199_999e-8, rel=1e-6), (
        "nothing is lost beside what is large"
    )


def test_the_sum_of_squares_and_the_update_are_the_same_bits_for_any_number_of_threads(
    call_kernel: Callable[..., int], threads_of: Callable[[int], AbstractContextManager[None]]
):
    tensors, found = tensors_of(np.random.default_rng(0)), set()
    for threads in (1, 2, 3):
        store = Store(call_kernel, 3, width=70_001)
        with threads_of(threads):
            store.update(store.rng.normal(size=(2, 70_001)), [0, 2], [1, 1])
            found.add((square_sum(call_kernel, *tensors).tobytes(), *bits(store.state())))
    assert len(found) == 1


def test_the_sums_of_the_tensors_stand_beside_the_same_bits_of_the_whole(call_kernel: Callable[..., int]):
    tensors = [*tensors_of(np.random.default_rng(0)), *tensors_of(np.random.default_rng(1), np.float16)]
    sums = np.full(1 + len(tensors), -1.0, np.float32)
    assert call_kernel("SquareSum", *tensors, sums) == 0
    assert sums[:1].tobytes() == square_sum(call_kernel, *tensors).tobytes()
    np.testing.assert_allclose(sums[1:], [(t.astype(np.float64) ** 2).sum() for t in tensors], rtol=1e-6)
    assert call_kernel("SquareSum", *tensors, np.zeros(3, np.float32)) == 3


def test_the_sum_of_squares_refuses_other_dtypes(call_kernel: Callable[..., int]):
    for dtype in (np.float64, np.int32, np.uint16):
        assert call_kernel("SquareSum", np.ones(3, np.float32), np.ones(3, dtype), np.zeros(1, np.float32)) == 2
    assert call_kernel("SquareSum", np.zeros(1, np.float32)) == 1


@pytest.fixture
def parameters(graph_mode: None) -> list:
    """w, m, v of two tensors with 3 rows, and their step counts, as MindSpore parameters."""
    rng = np.random.default_rng(3)
    shapes = [(3, 4, 2), (3, 7)]
    weights = tuple(Parameter(Tensor(rng.normal(size=s).astype(np.float32)), name=f"w{s}") for s in shapes)
    moments = tuple(Parameter(Tensor(np.zeros(s, np.float32)), name=f"m{s}") for s in shapes)
    variances = tuple(Parameter(Tensor(np.zeros(s, np.float32)), name=f"v{s}") for s in shapes)
    return [weights, moments, variances, Parameter(Tensor(np.zeros(3, np.int32)), name="step")]


def step_cell(parameters: list):
    """A cell that updates the parameters in a graph, as the training step does."""

    class Step(nn.Cell):
        def __init__(self):
            super().__init__()
            self.w, self.m, self.v = (ParameterTuple(part) for part in parameters[:3])
            self.step = parameters[3]
            self.adam = AdamRows()

        def construct(self, first, second, active, offsets, hyper, decay):
            return self.adam(self.w, self.m, self.v, (first, second), self.step, active, offsets, hyper, decay)

    return Step()


def graph_inputs(active: np.ndarray, offsets: np.ndarray, grads: list[np.ndarray]) -> list:
    hyper, decay = np.array(list(HYPER.values()), np.float32), np.array([0.1, 0.0], np.float32)
    return [Tensor(a) for a in (*grads, active, offsets, hyper, decay)]


def test_in_a_graph_several_tensors_share_step_counts_and_have_their_own_decay(parameters: list):
    rng = np.random.default_rng(4)
    grads = [rng.normal(size=s).astype(np.float32) for s in [(2, 4, 2), (2, 7)]]
    before = [p.asnumpy().copy() for p in parameters[0]]
    active, offsets = np.array([0, 2], np.int32), np.array([0, 1, 4], np.int32)
    cell, exact = step_cell(parameters), {}
    for t in (1, 2, 3):
        assert cell(*graph_inputs(active, offsets, grads)).asnumpy() == 2
        for i, decay in enumerate((0.1, 0.0)):
            for entry, row in enumerate(active):
                w, m, v = exact.get((i, row), (before[i][row], 0.0, 0.0))
                exact[i, row] = oracle(w, m, v, t, grads[i][entry], weight_decay=decay)
    for (i, row), expected in exact.items():
        for part, values in zip(parameters[:3], expected, strict=True):
            np.testing.assert_allclose(part[i].asnumpy()[row], values, rtol=2e-5, atol=1e-6)
    assert list(parameters[3].asnumpy()) == [3, 0, 3]
    for i, first in enumerate(before):
        assert parameters[0][i].asnumpy()[1].tobytes() == first[1].tobytes()


def test_every_row_is_ordinary_adam(parameters: list):
    grads = [np.ones((3, 4, 2), np.float32), np.ones((3, 7), np.float32)]
    active, offsets = (t.asnumpy() for t in every_row(3))
    assert step_cell(parameters)(*graph_inputs(active, offsets, grads)).asnumpy() == 3
    assert list(parameters[3].asnumpy()) == [1, 1, 1]


def test_a_failed_check_is_a_runtime_error_and_nothing_changed(
    parameters: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # MindSpore leaves an analysis of the failed graph in the working directory
    before = [p.asnumpy().tobytes() for p in (*parameters[0], parameters[3])]
    grads = [np.ones((2, 4, 2), np.float32), np.ones((2, 7), np.float32)]
    active, offsets = np.array([0, 3], np.int32), np.array([0, 1, 2], np.int32)
    with pytest.raises(RuntimeError, match="AdamRows"):
        step_cell(parameters)(*graph_inputs(active, offsets, grads)).asnumpy()
    assert [p.asnumpy().tobytes() for p in (*parameters[0], parameters[3])] == before
