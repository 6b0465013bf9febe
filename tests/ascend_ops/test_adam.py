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
        grad = grad if grad.dtype == np.float16 else grad.astype(np.float32)
        values = np.array(list({**HYPER, **hyper}.values()), np.float32)
        offsets, updated = np.cumsum([0, *tokens]).astype(np.int32), np.full(1, -1.0, np.float32)
        places, decays = np.array(active, np.int32), np.array([decay], np.float32)
        arrays = [self.w, self.m, self.v, grad, self.step, places, offsets, values, decays, updated]
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


def test_gradients_in_half_precision_are_their_values(call_kernel: Callable[..., int]):
    half, whole = Store(call_kernel, 3, 37), Store(call_kernel, 3, 37)
    grad = half.rng.normal(size=(2, 37)).astype(np.float16)
    assert half.update(grad, [0, 2], [1, 1], 0.1) == (0, 2)
    assert whole.update(grad.astype(np.float32), [0, 2], [1, 1], 0.1) == (0, 2)
    assert bits(half.state()) == bits(whole.state())


def widened(bits16: np.ndarray) -> np.ndarray:
    return (bits16.astype(np.uint32) << 16).view(np.float32)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), width=st.integers(1, 70), scale=st.sampled_from([1e-8, 1.0, 1e4]))
def test_moments_in_bfloat16_are_rounded_after_each_step(
    call_kernel: Callable[..., int], seed: int, width: int, scale: float
):
    """The weight takes the moments as they were before rounding; the next step takes them as they are stored."""
    store = Store(call_kernel, 2, width, seed)
    store.m, store.v = (np.zeros((2, width), np.uint16) for _ in range(2))
    before = bits([a[1] for a in store.state()])
    for t in range(1, 6):
        start = store.w[0].copy(), widened(store.m[0]), widened(store.v[0])
        grad = (scale * store.rng.normal(size=(1, width))).astype(np.float32)
        assert store.update(grad, [0], [1], decay=0.1) == (0, 1)
        w, m, v = oracle(*start, t, grad[0], weight_decay=0.1)
        np.testing.assert_allclose(store.w[0], w, rtol=2e-5, atol=1e-6)
        for stored, exact in ((store.m, m), (store.v, v)):
            np.testing.assert_allclose(widened(stored[0]), exact, rtol=1.001 * 2**-8, atol=1e-44)  # half of a last bit
    assert bits([a[1] for a in store.state()]) == before


class Copies:
    """A call of AdamRowsCopied on a store of four rows of two tensors, with places for three gradients."""

    def __init__(self, call_kernel: Callable[..., int], copied: type = np.float32):
        rng = np.random.default_rng(8)
        shapes = [(4, 3, 7), (4, 19)]
        self.w, self.m, self.v = ([rng.random(s).astype(np.float32) for s in shapes] for _ in range(3))
        self.grads: list[np.ndarray] = [rng.normal(size=(3, *s[1:])).astype(np.float32) for s in shapes]
        self.copies = [np.full((3, *s[1:]), 7, copied) for s in shapes]
        self.step = np.array([3, 2, 1, 0], np.int32)
        self.decay = np.array([0.1, 0.0], np.float32)
        self.call_kernel = call_kernel

    def stored(self) -> list[np.ndarray]:
        return [*self.w, *self.m, *self.v, self.step]

    def everything(self) -> list[np.ndarray]:
        return [*self.stored(), *self.grads, *self.copies]

    def call(self, active: list[int], tokens: list[int], places: list[int], **hyper: float) -> tuple[int, float]:
        """The number of the failed check, and the rows updated."""
        offsets, updated = np.cumsum([0, *tokens]).astype(np.int32), np.full(1, -1.0, np.float32)
        values = np.array(list({**HYPER, **hyper}.values()), np.float32)
        lists = [np.array(active, np.int32), offsets, np.array(places, np.int32)]
        arrays = [*self.w, *self.m, *self.v, *self.grads, *self.copies, self.step, *lists, values, self.decay, updated]
        return self.call_kernel("AdamRowsCopied", *arrays), float(updated[0])

    def plain(self, active: list[int], tokens: list[int], **hyper: float) -> int:
        """The same without copies."""
        offsets, updated = np.cumsum([0, *tokens]).astype(np.int32), np.zeros(1, np.float32)
        values = np.array(list({**HYPER, **hyper}.values()), np.float32)
        lists = [np.array(active, np.int32), offsets]
        arrays = [*self.w, *self.m, *self.v, *self.grads, self.step, *lists, values, self.decay, updated]
        return self.call_kernel("AdamRows", *arrays)


@pytest.mark.parametrize("copied", [np.float32, np.float16])
def test_a_copy_is_the_row_after_the_step_at_the_place_it_is_sent_to(call_kernel: Callable[..., int], copied: type):
    """Rows that are not updated too; and nothing is written where none is sent."""
    one, other = Copies(call_kernel, copied), Copies(call_kernel)
    assert one.call([3, 1, 0], [2, 0, 5], [2, 0, -1]) == (0, 2)
    assert other.plain([3, 1, 0], [2, 0, 5]) == 0
    assert bits(one.stored()) == bits(other.stored())
    for w, first, copy in zip(one.w, Copies(call_kernel).w, one.copies, strict=True):
        assert (w[3] != first[3]).any()
        assert (w[1] == first[1]).all()
        assert copy[2].tobytes() == w[3].astype(copied).tobytes()
        assert copy[0].tobytes() == w[1].astype(copied).tobytes()
        assert (copy[1] == 7).all()


@pytest.mark.parametrize("copied", [np.float32, np.float16])
def test_a_skipped_step_copies_and_changes_nothing_else(call_kernel: Callable[..., int], copied: type):
    call = Copies(call_kernel, copied)
    call.grads[0][...] = np.nan
    before = bits([*call.stored(), *call.grads])
    assert call.call([0, 1, 2], [1, 1, 0], [1, 2, 0], apply=0.0) == (0, 0)
    assert bits([*call.stored(), *call.grads]) == before
    for w, copy in zip(call.w, call.copies, strict=True):
        assert copy.tobytes() == w[[2, 0, 1]].astype(copied).tobytes()


def test_places_below_zero_are_sent_nowhere(call_kernel: Callable[..., int]):
    """Then an unused place may name a row that does not exist, as a plan's does."""
    call, other = Copies(call_kernel), Copies(call_kernel)
    before = bits(call.copies)
    assert call.call([0, 4, -1], [1, 0, 0], [-1, -1, -5]) == (0, 1)
    assert other.plain([0, 4, -1], [1, 0, 0]) == 0
    assert bits(call.copies) == before
    assert bits(call.stored()) == bits(other.stored())


@pytest.mark.parametrize(
    ("active", "places"), [([0, 1, 2], [0, 1, 3]), ([0, 4, 2], [0, 1, -1]), ([0, -1, 2], [0, 1, 2])]
)
@pytest.mark.parametrize("apply", [0.0, 1.0])
def test_a_copy_outside_its_array_or_of_no_row_is_refused_before_anything_changes(
    call_kernel: Callable[..., int], active: list[int], places: list[int], apply: float
):
    """Also when the place has no token."""
    call = Copies(call_kernel)
    before = bits(call.everything())
    assert call.call(active, [1, 0, 1], places, apply=apply, zero_grad=1.0)[0] == 4
    assert bits(call.everything()) == before


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("apply", [0.0, 1.0])
@pytest.mark.parametrize("copying", [False, True])
def test_zero_grad_leaves_no_gradient_in_any_place(
    call_kernel: Callable[..., int], dtype: type, apply: float, copying: bool
):
    """Also of places without tokens, whatever row they name, and when the step is skipped."""
    call, other = Copies(call_kernel), Copies(call_kernel)
    for pair in (call, other):
        pair.grads = [g.astype(dtype) for g in pair.grads]
        pair.grads[1][2] = np.inf
    active, tokens = [0, 2, 4], [1, 1, 0]
    if copying:
        assert call.call(active, tokens, [0, -1, -1], apply=apply, zero_grad=1.0) == (0, 2 * apply)
    else:
        assert call.plain(active, tokens, apply=apply, zero_grad=1.0) == 0
    assert all((g.view(np.uint8) == 0).all() for g in call.grads)
    assert other.plain(active, tokens, apply=apply) == 0
    assert bits(call.stored()) == bits(other.stored()), "the update has seen the gradients"


@pytest.mark.parametrize(
    ("part", "change", "check"),
    [
        ("w", lambda a: a.astype(np.float16), 2),
        ("m", lambda a: a.astype(np.float16), 2),
        ("m", lambda a: a.astype(np.uint16), 2),  # and v float32
        ("v", lambda a: a.astype(np.float64), 2),
        ("grads", lambda a: a.astype(np.float64), 2),
        ("grads", lambda a: a.astype(np.uint16), 2),
        ("copies", lambda a: a.astype(np.uint16), 2),
        ("m", lambda a: a[:, :-1].copy(), 3),
        ("v", lambda a: a[:3].copy(), 3),
        ("grads", lambda a: a[:2].copy(), 3),
        ("copies", lambda a: a[:2].copy(), 3),
        ("step", lambda a: a.astype(np.int64), 2),
        ("step", lambda a: a[:3].copy(), 3),
        ("decay", lambda a: a.astype(np.float64), 2),
        ("decay", lambda a: np.zeros(3, np.float32), 3),
    ],
)
def test_arrays_of_another_dtype_or_size_are_refused_before_anything_changes(
    call_kernel: Callable[..., int], part: str, change: Callable, check: int
):
    call = Copies(call_kernel)
    found = getattr(call, part)
    setattr(call, part, [*found[:-1], change(found[-1])] if isinstance(found, list) else change(found))
    before = bits(call.everything())
    assert call.call([0, 1, 2], [1, 1, 1], [0, 1, 2])[0] == check
    assert bits(call.everything()) == before


def test_a_store_without_rows_is_refused(call_kernel: Callable[..., int]):
    assert Store(call_kernel, 0).update(np.zeros((0, 5)), [], [])[0] == 3


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint16])
def test_the_square_sum_refuses_another_dtype(call_kernel: Callable[..., int], dtype: type):
    assert call_kernel("SquareSum", np.ones(3, np.float32), np.ones(3, dtype), np.zeros(1, np.float32)) == 2
    assert call_kernel("SquareSum", np.zeros(1, np.float32)) == 1


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
