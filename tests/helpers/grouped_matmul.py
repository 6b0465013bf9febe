"""A stand-in for GroupedMatmul, which has no CPU kernel: standard operators that MindSpore differentiates, and an oracle in NumPy.

Shape suffixes: W rows, H and F columns, A experts.
"""

from __future__ import annotations

import numpy as np
from mindspore import nn, ops


class GroupedMatmulOnCpu(nn.Cell):
    """construct([x_WH], [w_AHF], …, ends_A) -> (y_WF,), as ops.GroupedMatmul(split_item=3, group_type=0)."""

    def construct(self, x, w, bias, scale, offset, antiquant_scale, antiquant_offset, ends_A):
        rows = ops.expand_dims(ops.arange(x[0].shape[0]), 1)
        begin, y_WF = 0, 0.0
        for a in range(w[0].shape[0]):
            own = ops.logical_and(rows >= begin, rows < ends_A[a])
            y_WF = y_WF + ops.matmul(ops.where(own, x[0], ops.zeros_like(x[0])), w[0][a])
            begin = ends_A[a]
        return (y_WF,)


def grouped_matmul_oracle(x_WH: np.ndarray, w_AHF: np.ndarray, ends_A: np.ndarray) -> np.ndarray:
    """The product of the rows of each group with its matrix."""
    y_WF = np.zeros((len(x_WH), w_AHF.shape[2]))
    for w_HF, begin, end in zip(w_AHF, [0, *ends_A[:-1]], ends_A, strict=True):
        y_WF[begin:end] = x_WH[begin:end] @ w_HF
    return y_WF


def grouped_matmul_gradients(
    x_WH: np.ndarray, w_AHF: np.ndarray, ends_A: np.ndarray, dy_WF: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of x and of w: the same product with the transposed matrices, and the product that is grouped along the rows."""
    dw_AHF = np.zeros_like(w_AHF)
    for dw_HF, begin, end in zip(dw_AHF, [0, *ends_A[:-1]], ends_A, strict=True):
        dw_HF[:] = x_WH[begin:end].T @ dy_WF[begin:end]
    return grouped_matmul_oracle(dy_WF, w_AHF.transpose(0, 2, 1), ends_A), dw_AHF
