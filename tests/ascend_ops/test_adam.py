"""Adam on host rows: the float64 oracle on the rows that were used, and not one bit of difference on the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascend_ops.adam import AdamRows, adam_oracle, every_row

HYPER = {"lr": 1e-2, "grad_scale": 0.5, "apply": 1.0, "beta1": 0.8, "beta2": 0.95, "eps": 1e-20, "zero_grad": 0.0}


class Store:
    """K rows of one tensor [K, P] with its Adam state, and the kernel called on it."""

    def __init__(self, call_kernel: Callable[..., int], rows: int, width: int = 5, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.w = self.rng.normal(size=(rows, width)).astype(np.float32)
        self.m, self.v = np.zeros_like(self.w), np.zeros_like(self.w)
        self.step = np.zeros(rows, np.int32)
        self.call = call_kernel

    def state(self) -> list[np.ndarray]:
        return [self.w, self.m, self.v, self.step]

    def update(
        self, grad: np.ndarray, active: list[int], tokens: list[int], decay: float = 0.0, **hyper: float
    ) -> tuple[int, float]:
        """tokens: of each active place. Returns the number of the failed check and the rows updated."""
        values = np.array(list({**HYPER, **hyper}.values()), np.float32)
        offsets, updated = np.cumsum([0, *tokens]).astype(np.int32), np.full(1, -1.0, np.float32)
        places, decays = np.array(active, np.int32), np.array([decay], np.float32)
        arrays = [self.w, self.m, self.v, grad.astype(np.float32), self.step, places, offsets, values, decays, updated]
        return self.call("AdamRows", *arrays), float(updated[0])


def oracle(w, m, v, t, grad, **hyper) -> tuple[np.ndarray, ...]:
    values = {**HYPER, "weight_decay": 0.0, **hyper}
    del values["apply"], values["zero_grad"]
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
    for place, row in enumerate([0, 2]):
        np.testing.assert_allclose(store.w[row], oracle(w[row], 0, 0, 1, grad[place])[0], rtol=1e-5, atol=1e-6)
    assert store.w[1].tobytes() == w[1].tobytes()


def test_a_gradient_of_zero_on_fresh_moments_changes_nothing_but_the_step_count(call_kernel: Callable[..., int]):
    store = Store(call_kernel, 2)
    before = bits(store.state()[:3])
    assert store.update(np.zeros((1, 5)), [1], [1]) == (0, 1)
    assert bits(store.state()[:3]) == before
    assert list(store.step) == [0, 1]


@pytest.mark.parametrize("size", [1e-15, 1e-10, 1.0, 1e10, 1e15])
def test_gradients_far_above_epsilon_move_a_weight_by_the_learning_rate(call_kernel: Callable[..., int], size: float):
    """The first step of Adam is lr · sign(g), and ε = 1e-20 does not hold back even a gradient of 1e-15."""
    store = Store(call_kernel, 1)
    w, grad = store.w.copy(), store.rng.choice([-1.0, 1.0], (1, 5)) * size
    store.update(grad, [0], [1])
    np.testing.assert_allclose(store.w, w - 1e-2 * np.sign(grad), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(store.w[0], oracle(w[0], 0, 0, 1, grad[0])[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1e-45, 1e-42, 1e-38, 1e-30, 1e-25, 3e-23, 1e-22, 1e-21, 1e-20, 1e-19])
def test_gradients_whose_square_is_denormal_or_zero_stay_finite_and_bounded(
    call_kernel: Callable[..., int], size: float
):
    """v loses its digits below g ≈ 1e-19 and is 0 below 1e-23; the step is then anything up to a few learning rates."""
    store = Store(call_kernel, 1)
    for _ in range(5):
        before = store.w.copy()
        store.update(np.full((1, 5), size), [0], [1], grad_scale=1.0)
        assert np.isfinite(store.w).all()
        assert np.abs(store.w - before).max() <= 5 * HYPER["lr"]
        assert (store.w <= before).all()  # never against the gradient


def test_apply_0_changes_nothing_even_with_gradients_that_are_not_numbers(call_kernel: Callable[..., int]):
    store = Store(call_kernel, 2)
    store.update(np.ones((2, 5)), [0, 1], [1, 1])
    before = bits(store.state())
    assert store.update(np.full((2, 5), np.nan), [0, 1], [1, 1], decay=0.1, apply=0.0) == (0, 0)
    assert bits(store.state()) == before


def test_an_unused_place_is_skipped_whatever_row_it_names(call_kernel: Callable[..., int]):
    store = Store(call_kernel, 2)
    before = bits([store.w[1]])
    assert store.update(np.ones((3, 5)), [0, 2, 99], [4, 0, 0]) == (0, 1)
    assert list(store.step) == [1, 0]
    assert bits([store.w[1]]) == before


@pytest.mark.parametrize("row", [-1, 2])
def test_a_used_place_outside_the_store_is_refused_before_anything_changes(call_kernel: Callable[..., int], row: int):
    store = Store(call_kernel, 2)
    before = bits(store.state())
    assert store.update(np.ones((2, 5)), [0, row], [1, 1])[0] == 4
    assert bits(store.state()) == before


def test_sizes_and_dtypes_that_do_not_fit_are_refused(call_kernel: Callable[..., int]):
    store = Store(call_kernel, 2)
    before = bits(store.state())
    assert store.update(np.ones((2, 4)), [0, 1], [1, 1])[0] == 3
    assert store.update(np.ones((2, 5)), [0, 1], [1])[0] == 3
    assert bits(store.state()) == before
    store.m = store.m.astype(np.float64)
    assert store.update(np.ones((2, 5)), [0, 1], [1, 1])[0] == 2


def test_weight_decay_is_decoupled_from_the_moments(call_kernel: Callable[..., int]):
    plain, decayed = Store(call_kernel, 1), Store(call_kernel, 1)
    grad = np.ones((1, 5), np.float32)
    w = plain.w.copy()
    plain.update(grad, [0], [1])
    decayed.update(grad, [0], [1], decay=0.5)
    assert bits(plain.state()[1:]) == bits(decayed.state()[1:])
    np.testing.assert_allclose(plain.w - decayed.w, w * 1e-2 * 0.5, rtol=1e-3, atol=1e-7)


@pytest.fixture
def parameters(graph_mode: None) -> list:
    """w, m, v of two tensors with 3 rows, and their step counts, as MindSpore parameters."""
    from mindspore import Parameter, Tensor

    rng = np.random.default_rng(3)
    shapes = [(3, 4, 2), (3, 7)]
    weights = tuple(Parameter(Tensor(rng.normal(size=s).astype(np.float32)), name=f"w{s}") for s in shapes)
    moments = tuple(Parameter(Tensor(np.zeros(s, np.float32)), name=f"m{s}") for s in shapes)
    variances = tuple(Parameter(Tensor(np.zeros(s, np.float32)), name=f"v{s}") for s in shapes)
    return [weights, moments, variances, Parameter(Tensor(np.zeros(3, np.int32)), name="step")]


def step_cell(parameters: list):
    """A cell that updates the parameters in a graph, as the training step does."""
    from mindspore import ParameterTuple, nn

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
    from mindspore import Tensor

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
            for place, row in enumerate(active):
                w, m, v = exact.get((i, row), (before[i][row], 0.0, 0.0))
                exact[i, row] = oracle(w, m, v, t, grads[i][place], weight_decay=decay)
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
