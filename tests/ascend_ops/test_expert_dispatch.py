"""The front of dispatch, combine and routing plan: values, gradients, errors, and the graph on Ascend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from helpers.front_cases import KINDS, check_combine, check_dispatch, check_gradients, check_transposed

from ascend_ops import expert_dispatch as front


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [1, 33])
def test_cases_of_the_device(graph_mode: None, kind: str, hidden: int):
    """What tests/device asks of a chip, here of the CPU: strided views, no residual, any negative index, gradients."""
    for strided in (False, True):
        check_dispatch(kind, 7, 30, hidden, strided)
        check_combine(kind, 20, 33, hidden, residual=True, strided=strided)
    check_combine(kind, 20, 33, hidden, residual=False)
    check_gradients(kind, 37, hidden)
    if kind != "bfloat16":  # which MindSpore does not transpose on a CPU
        check_transposed(kind, 7, 30, hidden)


@pytest.mark.parametrize("dtype", ["float32", "float16"])  # MindSpore's Gather has no bfloat16 on a CPU
def test_canns_gather_moves_the_same_rows_and_gradients(graph_mode: None, dtype: str):
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
    actual = front.Gather(cann=True)(*inputs).astype(ms.float32).asnumpy()
    assert np.array_equal(actual, front.dispatch_oracle(wide, order))
    ours, canns = (ms.grad(Cubes(cann))(*inputs).astype(ms.float32).asnumpy() for cann in (False, True))
    assert np.array_equal(canns, ours)


def test_rows_are_moved_exactly_by_several_threads(graph_mode: None):
    x, order, inverse = padded_case(1, 3000, 1001, 7)
    rows = front.ExpertDispatch()(ms.Tensor(x), ms.Tensor(order), ms.Tensor(inverse))
    assert np.array_equal(rows.asnumpy(), front.dispatch_oracle(x, order))
    out = front.ExpertCombine()(rows, ms.Tensor(inverse), ms.Tensor(order), ms.Tensor(x))
    assert np.array_equal(out.asnumpy(), front.combine_oracle(rows.asnumpy(), inverse, x))


def test_pynative_never_reads_before_the_producer_has_written(graph_mode: None):
    """A kernel launched beside MindSpore's own queue would read unfinished rows."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        rng = np.random.default_rng(0)
        order, inverse, _ = front.plan_oracle(rng.integers(0, 8, 256).astype(np.int32), 8)
        left, right = rng.standard_normal((256, 128)), rng.standard_normal((128, 96)).astype(np.float32)
        dispatch, tensors = front.ExpertDispatch(), [ms.Tensor(a) for a in (right, order, inverse)]
        for i in range(100):
            scaled = (left * (i + 1)).astype(np.float32)
            rows = dispatch(ms.ops.matmul(ms.Tensor(scaled), tensors[0]), *tensors[1:]) * 2.0
            np.testing.assert_allclose(rows.asnumpy(), 2 * (scaled @ right)[order], rtol=1e-3, atol=1e-2)
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)


BAD = {
    "index dtype": (lambda x, o, i: (x, o.astype(np.int64), i), TypeError, "ExpertDispatch: order has dtype Int64"),
    "rows dtype": (lambda x, o, i: (x.astype(np.int32), o, i), TypeError, "ExpertDispatch: x has dtype Int32"),
    "rows rank": (lambda x, o, i: (x[0], o, i), ValueError, r"ExpertDispatch: x has shape \(9,\)"),
    "index rank": (lambda x, o, i: (x, o[None], i), ValueError, "ExpertDispatch: order has shape"),
    "counts": (lambda x, o, i: (x, o, i[:-1]), ValueError, "ExpertDispatch: inverse has 29 entries for 30 rows of x"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_refused_by_name(graph_mode: None, fault: str):
    change, error, message = BAD[fault]
    with pytest.raises(error, match=message):
        front.ExpertDispatch()(*map(ms.Tensor, change(*padded_case(3, 30, 9, 4))))


def test_bad_residual_is_refused_by_name(graph_mode: None):
    x, order, inverse = padded_case(3, 30, 9, 4)
    rows = ms.Tensor(front.dispatch_oracle(x, order))
    with pytest.raises(ValueError, match=r"residual has shape \(29, 9\); it must be \(30, 9\)"):
        front.ExpertCombine()(rows, ms.Tensor(inverse), ms.Tensor(order), ms.Tensor(x[:-1]))


def test_front_compiles_for_eight_ascend_ranks(tmp_path: Path):
    """Our operators by their aclnn names, the AllReduces of two tensor-parallel MatMuls, and no other collective."""
    from pangu_sigma.npu.plan.cann_stub import ascend_environment

    program = Path(__file__).parents[1] / "helpers" / "ascend_graph.py"
    command, environment = [sys.executable, str(program)], ascend_environment(8)
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    counts = "aclnnExpertDispatch 3 aclnnExpertCombine 1 AllReduce 3 AllGather 0 AlltoAll 0 ReduceScatter 0"
    assert f"compiled: {counts}\n" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
