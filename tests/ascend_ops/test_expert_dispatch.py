"""The front of dispatch, combine and routing plan: values, gradients, errors, both modes, and the graph on Ascend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.front_cases import KINDS, check_combine, check_dispatch, check_gradients, check_transposed
from hypothesis import given
from hypothesis import strategies as st

from ascend_ops import expert_dispatch as front


@pytest.fixture(params=["GRAPH_MODE", "PYNATIVE_MODE"])
def ms(request: pytest.FixtureRequest, graph_mode: None):
    """MindSpore in each of its modes; the suite's own mode comes back afterwards."""
    import mindspore

    mindspore.set_context(mode=getattr(mindspore, request.param))
    yield mindspore
    mindspore.set_context(mode=mindspore.GRAPH_MODE)


def padded_case(seed: int, tokens: int, hidden: int, experts: int) -> tuple[np.ndarray, ...]:
    """x [T, H], order [M] with negative padding, inverse [T] with a dropped token."""
    rng = np.random.default_rng(seed)
    order, _, offsets = front.plan_oracle(rng.integers(0, experts, tokens).astype(np.int32), experts)
    capacity = int(np.diff(offsets).max())
    padded = np.full(experts * capacity, -1, np.int32)
    places = np.empty(tokens, np.int32)
    for e in range(experts):
        rows = order[offsets[e] : offsets[e + 1]]
        places[rows] = e * capacity + np.arange(len(rows))
        padded[places[rows]] = rows
    padded[places[0]], places[0] = -1, -1  # token 0 finds no place
    return rng.standard_normal((tokens, hidden)).astype(np.float32), padded, places


@given(st.lists(st.integers(0, 6), min_size=1, max_size=200))
def test_plan_oracle_is_a_stable_sort(experts: list[int]):
    ids = np.array(experts, np.int32)
    order, inverse, offsets = front.plan_oracle(ids, 7)
    assert np.array_equal(order[inverse], np.arange(len(ids)))
    for k in range(7):
        rows = order[offsets[k] : offsets[k + 1]]
        assert (ids[rows] == k).all()
        assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [1, 3, 16, 33, 2560])
def test_cases_of_the_device(ms, kind: str, hidden: int):
    """What tests/device asks of a chip, here of the CPU: strided views, no residual, any negative index, gradients."""
    for strided in (False, True):
        check_dispatch(kind, 7, 30, hidden, strided)
        check_combine(kind, 20, 33, hidden, residual=True, strided=strided)
    check_combine(kind, 20, 33, hidden, residual=False)
    check_gradients(kind, 37, hidden)
    if kind != "bfloat16":  # which MindSpore does not transpose on a CPU
        check_transposed(kind, 7, 30, hidden)


@pytest.mark.parametrize("dtype", ["float32", "float16"])  # MindSpore's Gather has no bfloat16 on a CPU
def test_canns_gather_moves_the_same_rows_and_gradients(ms, dtype: str):
    """Rows that are empty, tokens that no expert takes, and in the gradient the same; bit for bit."""
    x, order, inverse = padded_case(2, 40, 33, 5)
    half = ms.Tensor(x).astype(getattr(ms, dtype))
    assert (order < 0).any()
    assert (inverse < 0).any()

    class Cubes(ms.nn.Cell):
        def __init__(self, cann: bool):
            super().__init__()
            self.move = front.Gather(cann)

        def construct(self, x, order, inverse):
            rows = self.move(x, order, inverse)
            return rows * rows * rows

    inputs = (half, ms.Tensor(order), ms.Tensor(inverse))
    wide = half.astype(ms.float32).asnumpy()
    found = front.Gather(cann=True)(*inputs).astype(ms.float32).asnumpy()
    assert np.array_equal(found, front.dispatch_oracle(wide, order))
    ours, canns = (ms.grad(Cubes(cann))(*inputs).astype(ms.float32).asnumpy() for cann in (False, True))
    assert np.array_equal(canns, ours)


def test_rows_are_moved_exactly_by_several_threads(ms):
    x, order, inverse = padded_case(1, 3000, 1001, 7)
    rows = front.ExpertDispatch()(ms.Tensor(x), ms.Tensor(order), ms.Tensor(inverse))
    assert np.array_equal(rows.asnumpy(), front.dispatch_oracle(x, order))
    out = front.ExpertCombine()(rows, ms.Tensor(inverse), ms.Tensor(order), ms.Tensor(x))
    assert np.array_equal(out.asnumpy(), front.combine_oracle(rows.asnumpy(), inverse, x))


def test_gradients_are_finite_differences_of_the_oracle(ms):
    x, order, inverse = padded_case(3, 30, 9, 4)

    class Loss(ms.nn.Cell):
        def __init__(self, dispatch: object, combine: object):
            super().__init__()
            self.dispatch, self.combine = dispatch, combine

        def construct(self, x, residual, order, inverse):
            rows = self.dispatch(x, order, inverse)
            out = self.combine(rows * rows, inverse, order, residual)
            return (out * out * out).sum()

    residual = np.random.default_rng(4).standard_normal(x.shape).astype(np.float32)
    loss = Loss(front.ExpertDispatch(), front.ExpertCombine())
    found = ms.grad(loss, (0, 1))(ms.Tensor(x), ms.Tensor(residual), ms.Tensor(order), ms.Tensor(inverse))

    def oracle(x: np.ndarray, residual: np.ndarray) -> float:
        out = front.combine_oracle(front.dispatch_oracle(x, order) ** 2, inverse, residual)
        return float((out**3).sum())

    wide = [x.astype(np.float64), residual.astype(np.float64)]
    for i, gradient in enumerate(found):
        for at in [(0, 0), (5, 3), (29, 8)]:
            step = np.zeros_like(wide[i])
            step[at] = 1e-6
            up, down = ([a + s * step if j == i else a for j, a in enumerate(wide)] for s in (1, -1))
            assert gradient.asnumpy()[at] == pytest.approx((oracle(*up) - oracle(*down)) / 2e-6, rel=2e-4, abs=2e-4)


def test_pynative_never_reads_before_the_producer_has_written(graph_mode: None):
    """matmul → dispatch → mul, 200 times: a kernel launched beside MindSpore's own queue would read unfinished rows."""
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        rng = np.random.default_rng(0)
        order, inverse, _ = front.plan_oracle(rng.integers(0, 8, 256).astype(np.int32), 8)
        left, right = rng.standard_normal((256, 128)), rng.standard_normal((128, 96))
        dispatch, right_t = front.ExpertDispatch(), ms.Tensor(right.astype(np.float32))
        order_t, inverse_t = ms.Tensor(order), ms.Tensor(inverse)
        wrong = 0
        for i in range(200):
            scaled = (left * (i + 1)).astype(np.float32)
            out = dispatch(ms.ops.matmul(ms.Tensor(scaled), right_t), order_t, inverse_t) * 2.0
            wrong += not np.allclose(
                out.asnumpy(), 2 * (scaled @ right.astype(np.float32))[order], rtol=1e-3, atol=1e-2
            )
        assert wrong == 0
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)


BAD = {
    "index dtype": (lambda x, o, i: (x, o.astype(np.int64), i), TypeError, "ExpertDispatch: order has dtype Int64"),
    "rows dtype": (lambda x, o, i: (x.astype(np.int32), o, i), TypeError, "ExpertDispatch: x has dtype Int32"),
    "rows rank": (lambda x, o, i: (x[0], o, i), ValueError, r"ExpertDispatch: x has shape \(9,\)"),
    "index rank": (lambda x, o, i: (x, o[None], i), ValueError, "ExpertDispatch: order has shape"),
    "counts": (lambda x, o, i: (x, o, i[:-1]), ValueError, "ExpertDispatch: inverse has 29 entries for 30 rows of x"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_by_name(ms, what: str):
    change, error, message = BAD[what]
    inputs = change(*padded_case(3, 30, 9, 4))
    with pytest.raises(error, match=message):
        front.ExpertDispatch()(*map(ms.Tensor, inputs))


def test_bad_residual_is_refused_by_name(ms):
    x, order, inverse = padded_case(3, 30, 9, 4)
    rows = ms.Tensor(front.dispatch_oracle(x, order))
    with pytest.raises(ValueError, match=r"residual has shape \(29, 9\); it must be \(30, 9\)"):
        front.ExpertCombine()(rows, ms.Tensor(inverse), ms.Tensor(order), ms.Tensor(x[:-1]))


def test_index_past_the_end_is_an_error_not_a_crash(call_kernel):
    """Check 4 of the kernels, called directly: MindSpore takes seconds to report the same."""
    x, index = np.zeros((4, 2), np.float32), np.array([0, 4], np.int32)
    assert call_kernel("ExpertDispatch", x, index, np.zeros((2, 2), np.float32)) == 4
    assert call_kernel("ExpertCombine", x, index, np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)) == 4


def test_front_compiles_for_eight_ascend_ranks(tmp_path: Path):
    """Forward and backward under semi_auto_parallel: our operators by their aclnn names, the tensor-parallel AllReduces of the
    two MatMuls between them, and no other collective."""
    from pangu_sigma.npu.plan.cann_stub import ascend_environment

    program = Path(__file__).parents[1] / "helpers" / "ascend_graph.py"
    done = subprocess.run(
        [sys.executable, str(program)],
        env=ascend_environment(8),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("compiled:")]
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    assert "aclnnExpertDispatch 3 aclnnExpertCombine 1" in found[0]
    assert "AllGather 0 AlltoAll 0 ReduceScatter 0" in found[0]
    assert "AllReduce 3" in found[0]
