"""Rows of a store that a worker updates, in the precision of the device, and back as gradients; bfloat16 is 910B's half type."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from ascend_ops.adam import HYPER
from ascend_ops.adam_worker import AdamWorker, Await, FetchStored, StartUpdate

pytestmark = pytest.mark.usefixtures("graph_mode")
RNG = np.random.default_rng(0)
TOKEN = Tensor(np.zeros(1, np.float32))


class Experts:
    """A segment of five experts of three tensors, and the worker that has them."""

    def __init__(self) -> None:
        self.w = [RNG.normal(size=(5, 8, 5)), RNG.normal(size=(5, 8)), RNG.normal(size=(5, 8, 5))]
        self.w = [each.astype(np.float32) for each in self.w]
        state = [[np.zeros_like(each) for each in self.w] for _ in range(2)]
        self.worker = AdamWorker(1, copies_gradients=True)
        self.worker.register(0, self.w, *state, np.zeros(5, np.int32), [0.0] * 3)
        self.fetch = FetchStored(self.worker, 0, 3)

    def like(self, dtype: ms.Type, rows: int = 3) -> tuple[Tensor, ...]:
        return tuple(Tensor(np.zeros((rows, *each.shape[1:]), np.float32)).astype(dtype) for each in self.w)

    def rows(self, dtype: ms.Type, *active: int) -> list[np.ndarray]:
        """The rows as the device gets them."""
        *actual, _ = self.fetch(Tensor(np.array(active, np.int32)), self.like(dtype, len(active)), TOKEN)
        assert {each.dtype for each in actual} == {dtype}
        return [each.astype(ms.float32).asnumpy() for each in actual]


class Weighed(nn.Cell):
    """The sum of a segment's rows times a factor, which is the gradient of each."""

    def __init__(self, experts: Experts):
        super().__init__()
        self.fetch = experts.fetch

    def construct(self, active, w1, b1, w2, factor):
        rows = self.fetch(active, (w1, b1, w2), TOKEN)
        return (rows[0] * factor).sum() + (rows[1] * factor).sum() + (rows[2] * factor).sum()


class Learn(nn.Cell):
    """An update by the gradients of `Weighed`, which it returns."""

    def __init__(self, experts: Experts):
        super().__init__()
        self.grads = ms.grad(Weighed(experts), (1, 2, 3))
        self.start = StartUpdate(experts.worker, 0)

    def construct(self, active, offsets, factor, hyper, w1, b1, w2):
        grads = self.grads(active, w1, b1, w2, factor)
        return ops.depend(grads, self.start(grads, active, offsets, hyper))


@pytest.mark.parametrize("dtype", [ms.float32, ms.float16, ms.bfloat16])
def test_rows_are_rounded_to_the_dtype_asked_for_and_an_unused_entry_is_zeros(dtype: ms.Type):
    experts = Experts()
    for actual, w in zip(experts.rows(dtype, 4, 0, 5), experts.w, strict=True):
        expected = Tensor(np.concatenate([w[[4, 0]], np.zeros_like(w[:1])])).astype(dtype).astype(ms.float32)
        np.testing.assert_array_equal(actual, expected.asnumpy())


@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16])
def test_gradients_reach_what_is_like_the_rows_and_the_next_look_up_finds_them_learned(dtype: ms.Type):
    """A bfloat16 gradient of 3 is the number 3: the update is that of float32."""
    experts = Experts()
    before = [each.copy() for each in experts.w]
    hyper = np.zeros(len(HYPER), np.float32)
    for name, value in {"lr": 0.1, "grad_scale": 1, "apply": 1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}.items():
        hyper[HYPER.index(name)] = value
    active, offsets = Tensor(np.array([1, 5, 3], np.int32)), Tensor(np.array([0, 2, 2, 5], np.int32))
    grads = Learn(experts)(active, offsets, Tensor(3.0, dtype), Tensor(hyper), *experts.like(dtype))
    for grad, like in zip(grads, experts.like(dtype), strict=True):
        assert (grad.dtype, grad.shape) == (dtype, like.shape)
        assert (grad.astype(ms.float32).asnumpy() == 3.0).all()
    for actual, w in zip(experts.rows(ms.float32, 0, 1, 2, 3, 4), before, strict=True):  # waits for the update
        np.testing.assert_array_equal(actual[[0, 2, 4]], w[[0, 2, 4]])
        np.testing.assert_allclose(actual[[1, 3]], w[[1, 3]] - 0.1, rtol=1e-5, atol=1e-6)


def test_a_row_outside_the_store_and_sizes_that_do_not_fit_are_refused():
    experts = Experts()
    with pytest.raises(RuntimeError, match="FetchStored"):
        experts.rows(ms.float32, 1, 6)
    with pytest.raises(RuntimeError, match="FetchStored"):
        experts.fetch(Tensor(np.zeros(3, np.int32)), experts.like(ms.float32, 2), TOKEN)


def test_a_graph_raises_where_the_worker_failed_and_where_it_is_gone():
    experts = Experts()
    wait, rows = Await(experts.worker, 0), Tensor(np.ones(3, np.float32))
    np.testing.assert_array_equal(wait(rows).asnumpy(), rows.asnumpy())
    experts.worker.fail()
    with pytest.raises(RuntimeError, match="Await"):
        wait(rows)
    gone = Await(AdamWorker(1), 0)
    with pytest.raises(RuntimeError, match="Await"):
        gone(rows)
