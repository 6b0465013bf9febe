"""What the front of dispatch and combine must do on any device: run on the CPU by the suite, on a chip by tests/device.

The cells under test are made in here, after the target is set: a front chooses its operator for the device when it is constructed.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from helpers.kernel_cases import random_index
from mindspore import Tensor, nn, ops

from ascend_ops.expert_dispatch import ExpertCombine, ExpertDispatch, dispatch_oracle

KINDS = ("float32", "float16", "bfloat16")


def tensor(kind: str, values: np.ndarray, strided: bool = False) -> Tensor:
    """Values in dtype `kind`; strided: a view of every other element of the last axis of a tensor full of others."""
    if not strided:
        return Tensor(values).astype(getattr(ms, kind))
    wide = np.full((*values.shape[:-1], 2 * values.shape[-1]), 77, values.dtype)
    wide[..., ::2] = values
    view = Tensor(wide).astype(getattr(ms, kind))[..., ::2]
    assert not view.is_contiguous()
    return view


def exact(value: Tensor) -> np.ndarray:
    """The values as float32, which holds all of every kind."""
    return value.float().asnumpy()


class Transposed(nn.Cell):
    """Dispatch of a transposed tensor: the view, if the device makes one, is made inside the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatch = ExpertDispatch()

    def construct(self, x_HT: Tensor, order_M: Tensor, inverse_T: Tensor) -> Tensor:
        return self.dispatch(ops.transpose(x_HT, (1, 0)), order_M, inverse_T)


class Moved(nn.Cell):
    """Σ of weights · (combine of dispatch of x, onto the residual): a loss whose gradients are known."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatch, self.combine = ExpertDispatch(), ExpertCombine()

    def construct(self, x: Tensor, residual: Tensor, weights: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        moved = self.combine(self.dispatch(x, order, inverse), inverse, order, residual)
        return ops.cast(moved * weights, ms.float32).sum()


def check_dispatch(kind: str, tokens: int, rows: int, hidden: int, strided: bool = False) -> None:
    rng = np.random.default_rng([tokens, rows, hidden])
    x = tensor(kind, rng.standard_normal((tokens, hidden), np.float32), strided)
    order, inverse = random_index(rng, tokens, rows), random_index(rng, rows, tokens)
    actual = ExpertDispatch()(x, tensor("int32", order, strided), tensor("int32", inverse, strided))
    assert actual.dtype == x.dtype
    assert np.array_equal(exact(actual), dispatch_oracle(exact(x), order))


def check_transposed(kind: str, tokens: int, rows: int, hidden: int) -> None:
    rng = np.random.default_rng([tokens, rows, hidden, 3])
    x_HT = tensor(kind, rng.standard_normal((hidden, tokens), np.float32))
    order, inverse = random_index(rng, tokens, rows), random_index(rng, rows, tokens)
    actual = Transposed()(x_HT, tensor("int32", order), tensor("int32", inverse))
    assert np.array_equal(exact(actual), dispatch_oracle(exact(x_HT).T, order))


def check_combine(kind: str, rows: int, tokens: int, hidden: int, residual: bool, strided: bool = False) -> None:
    rng = np.random.default_rng([rows, tokens, hidden, 1])
    y = tensor(kind, rng.standard_normal((rows, hidden), np.float32), strided)
    inverse, order = random_index(rng, rows, tokens), random_index(rng, tokens, rows)
    indices = [tensor("int32", table, strided) for table in (inverse, order)]
    if not residual:
        assert np.array_equal(exact(ExpertCombine()(y, *indices)), dispatch_oracle(exact(y), inverse))
        return
    added = tensor(kind, rng.standard_normal((tokens, hidden), np.float32), strided)
    actual = ExpertCombine()(y, *indices, added)
    assert actual.dtype == y.dtype
    expected = tensor(kind, dispatch_oracle(exact(y), inverse) + exact(added))  # the sum in float32, rounded once
    assert np.array_equal(exact(actual), exact(expected))


def check_gradients(kind: str, tokens: int, hidden: int) -> None:
    """The gradient of a way there and back is the way back of the gradient, bit for bit; a token without a row has none."""
    rng = np.random.default_rng([tokens, hidden, 2])
    order = rng.permutation(tokens).astype(np.int32)
    inverse = np.argsort(order).astype(np.int32)
    order[inverse[: tokens // 5]], inverse[: tokens // 5] = -2, -(2**31)
    inputs = [tensor(kind, rng.standard_normal((tokens, hidden), np.float32)) for _ in range(3)]
    tables = [tensor("int32", table) for table in (order, inverse)]
    for_x, for_residual = ms.grad(Moved(), (0, 1))(*inputs, *tables)
    weights = exact(inputs[2])
    assert np.array_equal(exact(for_residual), weights)
    assert np.array_equal(exact(for_x), np.where(inverse[:, None] < 0, np.float32(0), weights))
