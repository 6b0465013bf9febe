"""FFN of many experts over rows sorted by expert: y = f(x·w1ᵀ + b1)·w2 + b2, forward and backward; f is an activation.

Shape suffixes: T rows, H hidden, F ffn, A experts. A dense FFN is the case A = 1.
Both matrices are stored ffn-major, so that a tensor-parallel rank owns contiguous rows of a flattened expert.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ascend_ops.activation import activation_oracle
from ascend_ops.host import host_op

KERNELS = {"fast_gelu": "GroupedFfn", "tanh": "GroupedFfnTanh", "erf": "GroupedFfnErf"}
"""Kernel of each activation; its gradient's name is the same with the suffix Grad."""


class GroupedFFN(nn.Cell):
    """Grouped expert FFN on the CPU: no padding, no sorting, no graph node per expert.
    construct(x_TH, w1_AFH, b1_AF, w2_AFH, b2_AH, offsets_A1) -> y_TH
        Rows offsets[a] … offsets[a + 1] - 1 of x go through expert a; offsets int32, ascending from 0 to at most T. The rows after
        the last expert's are not read, and their outputs and gradients are zeros.
        x float32 or float16, y and the gradient of x like it. Weights and biases float32 or float16, their gradients like them.
        Half precision saves memory traffic only: everything is computed and added in float32, and y and each gradient are rounded
        once, to nearest even, when written. A value beyond 65,504 is then infinite: the step sees it in the norm, skips its update
        and halves the loss scale.
        An expert without rows costs nothing forward and gets zero gradients. b2 may be None, for zeros.
    Raises RuntimeError if sizes do not fit or offsets do not cut the rows (the kernel returns 3), or for another dtype (2).
    """

    def __init__(self, activation: str = "fast_gelu"):
        """activation: `fast_gelu`, x · sigmoid(1.702 x); `tanh` or `erf`, two forms of GELU: see `activation_oracle`."""
        super().__init__()
        kernel = KERNELS[activation]
        self.forward = host_op(
            kernel, lambda x, w1, b1, w2, b2, o: (x, (x[0], w1[1])), lambda x, w1, b1, w2, b2, o: (x, ms.float32)
        )
        self.backward = host_op(
            f"{kernel}Grad",
            lambda dy, x, h, w1, w2, o: (x, w1, (w1[0], w1[1]), w2, (w2[0], w2[2])),
            lambda dy, x, h, w1, w2, o: (x, w1, w1, w2, w2),
        )
        self.differentiable = _Differentiable(self.forward, self.backward)

    def construct(self, x_TH, w1_AFH, b1_AF, w2_AFH, b2_AH, offsets_A1):
        if b2_AH is None:
            b2_AH = ops.zeros((w2_AFH.shape[0], w2_AFH.shape[2]), w2_AFH.dtype)
        return self.differentiable(x_TH, w1_AFH, b1_AF, w2_AFH, b2_AH, offsets_A1)[0]


class _Differentiable(nn.Cell):
    """The FFN with its gradient: construct(…) -> (y, inner).

    `inner`, the rows before the activation in float32, is an output so that the backward pass can read it.
    """

    def __init__(self, forward, backward):
        super().__init__()
        self.forward = forward
        self.backward = backward

    def construct(self, x, w1, b1, w2, b2, offsets):
        return self.forward(x, w1, b1, w2, b2, offsets)

    def bprop(self, x, w1, b1, w2, b2, offsets, out, dout):
        dx, dw1, db1, dw2, db2 = self.backward(dout[0], x, out[1], w1, w2, offsets)
        return dx, dw1, db1, dw2, db2, ops.zeros_like(offsets)


def grouped_ffn_oracle(
    x_TH: np.ndarray,
    w1_AFH: np.ndarray,
    b1_AF: np.ndarray,
    w2_AFH: np.ndarray,
    b2_AH: np.ndarray,
    offsets_A1: np.ndarray,
    activation: str = "fast_gelu",
) -> np.ndarray:
    """Compute GroupedFFN in NumPy, in the precision of its inputs, one expert after another."""
    y_TH = np.zeros_like(x_TH)
    for a in range(len(w1_AFH)):
        rows = slice(offsets_A1[a], offsets_A1[a + 1])
        inner = x_TH[rows] @ w1_AFH[a].T + b1_AF[a]
        y_TH[rows] = activation_oracle(inner, activation) @ w2_AFH[a] + b2_AH[a]
    return y_TH


def one_expert(rows: int) -> Tensor:
    """Return offsets that send all rows to a single expert: a dense FFN."""
    return Tensor(np.array([0, rows], np.int32))
