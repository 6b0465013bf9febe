"""Dispatch of rows to experts and combine, on CPU and Ascend, and a routing plan made on the host. GRAPH and PyNative.

Shape suffixes: T tokens, M sorted rows (T, or experts · capacity when padded), H hidden, K experts.

Only gathers: every output row is written once, by one core, whatever the plan; the gradient of a gather along a permutation is the
gather along its inverse. So results are bit-reproducible, without atomic additions.

On the CPU the operators are C++ (`cpu/dispatch.cc`); on Ascend they are the Ascend C operators of `op_kernel/`, which must be
installed (`README.md` in this folder). Under `semi_auto_parallel` an operator works on the rows of its own rank: its layouts are
declared whole, so nothing is communicated inside it. Bring its inputs to that layout outside (as the AllReduce after a row-split
MatMul does): a redistribution at its very border would be inside its gradient rule, and be lost.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from ascend_ops.device import Signature, device_op

DISPATCH = Signature("ExpertDispatch", {"x": 2, "order": 1}, {"rows": 2}, rows=("x", "rows"))
COMBINE = Signature(
    "ExpertCombine", {"rows": 2, "inverse": 1, "residual": 2}, {"out": 2}, rows=("rows", "residual", "out")
)

FLOATS = (ms.float32, ms.float16, ms.bfloat16)


class ExpertDispatch(nn.Cell):
    """Dispatch: gather the rows of T tokens, or padding, into M rows in expert order.
    construct(x_TH, order_M, inverse_T) -> rows_MH
        rows[i] = x[order[i]], or zeros where order[i] < 0 (padding to a capacity).
        inverse[t] is the row of token t, negative for a token without an expert; only the gradient reads it:
        dx[t] = drows[inverse[t]], or zeros.
    x: float32, float16, or bfloat16 where the device has it. order, inverse: int32.
    Raises TypeError or ValueError that names operator, argument and value for a wrong dtype, rank or length; RuntimeError
    (the kernel returns 4) for an index past the last row.
    """

    def __init__(self):
        super().__init__()
        self.move = Gather()

    def construct(self, x_TH, order_M, inverse_T):
        _check_rows("ExpertDispatch", "x", x_TH.dtype, x_TH.shape)
        _check_index("ExpertDispatch", "order", order_M.dtype, order_M.shape)
        _check_index("ExpertDispatch", "inverse", inverse_T.dtype, inverse_T.shape, x_TH.shape[0], "rows of x")
        return self.move(x_TH, order_M, inverse_T)


class ExpertCombine(nn.Cell):
    """Combine: gather the experts' M rows back into token order, and add the residual in the same pass.
    construct(rows_MH, inverse_T, order_M, residual_TH=None) -> out_TH
        out[t] = residual[t] + rows[inverse[t]]; a token without a row (inverse[t] < 0) is its residual, or zeros.
        order is read by the gradient only: drows[i] = dout[order[i]], or zeros; dresidual = dout.
    rows: float32, float16, or bfloat16 where the device has it; the residual has their dtype. Errors as in ExpertDispatch.
    """

    def __init__(self):
        super().__init__()
        self.move = Gather()
        self.add = GatherAdd()

    def construct(self, rows_MH, inverse_T, order_M, residual_TH=None):
        _check_rows("ExpertCombine", "rows", rows_MH.dtype, rows_MH.shape)
        _check_index("ExpertCombine", "inverse", inverse_T.dtype, inverse_T.shape)
        _check_index("ExpertCombine", "order", order_M.dtype, order_M.shape, rows_MH.shape[0], "rows")
        if residual_TH is None:
            return self.move(rows_MH, inverse_T, order_M)
        _check_residual(rows_MH.shape, inverse_T.shape, residual_TH.shape, rows_MH.dtype, residual_TH.dtype)
        return self.add(rows_MH, inverse_T, order_M, residual_TH)


def _gather():
    return device_op(DISPATCH, lambda x, i: (i[0], x[1]), lambda x, i: x)


class CannGather(nn.Cell):
    """Gather by CANN's operator, x[index] or zeros where index < 0, for which none of our operators need be installed.

    CANN has operators for rows of experts too, but none for these plans: `moe_token_permute` sorts what the host has sorted
    already, `moe_token_unpermute` and `moe_finalize_routing` cannot repeat a row or leave one empty, and the latter has no
    bfloat16.
    """

    def __init__(self):
        super().__init__()
        self.gather, self.join = ops.Gather(), ops.Concat(0)

    def construct(self, x, index):
        zeros_first = self.join((ops.zeros((1, x.shape[1]), x.dtype), x))  # row 0, for negative indices
        return self.gather(zeros_first, ops.maximum(index + 1, 0), 0)


class Gather(nn.Cell):
    """Differentiable gather of rows. construct(x, index, back) -> x[index], zeros where index < 0. back: inverse of
    `index`, by which the gradient gathers. cann: True for CANN's operator on NPUs, False for ours."""

    def __init__(self, cann: bool = False):
        super().__init__()
        self.gather = CannGather() if cann else _gather()

    def construct(self, x, index, back):
        return self.gather(x, index)

    def bprop(self, x, index, back, out, dout):
        return self.gather(dout, back), ops.zeros_like(index), ops.zeros_like(back)


class GatherAdd(nn.Cell):
    """Differentiable gather of rows, plus the residual: construct(x, index, back, residual) -> x[index] + residual, the residual
    alone where index < 0. back: inverse of `index`, by which the gradient gathers."""

    def __init__(self):
        super().__init__()
        self.gather = _gather()
        self.gather_add = device_op(COMBINE, lambda rows, i, r: r, lambda rows, i, r: rows)

    def construct(self, x, index, back, residual):
        return self.gather_add(x, index, residual)

    def bprop(self, x, index, back, residual, out, dout):
        return self.gather(dout, back), ops.zeros_like(index), ops.zeros_like(back), dout


@ms.constexpr
def _check_index(operator, name, dtype, shape, length=None, of=""):
    """Raise TypeError or ValueError if an argument is no index: int32 [length]. of: what `length` counts, for the message."""
    if dtype != ms.int32:
        raise TypeError(f"{operator}: {name} has dtype {dtype}; it must be int32, so cast it")
    if len(shape) != 1:
        raise ValueError(f"{operator}: {name} has shape {shape}; it must have one axis")
    if length is not None and shape[0] != length:
        raise ValueError(f"{operator}: {name} has {shape[0]} entries for {length} {of}; the numbers must agree")


@ms.constexpr
def _check_rows(operator, name, dtype, shape):
    """Raise TypeError or ValueError if an argument is not rows of floats, [rows, hidden]."""
    if dtype not in FLOATS:
        raise TypeError(f"{operator}: {name} has dtype {dtype}; it must be float32, float16 or bfloat16")
    if len(shape) != 2:
        raise ValueError(f"{operator}: {name} has shape {shape}; it must have two axes, rows and hidden")


@ms.constexpr
def _check_residual(rows, tokens, residual, rows_dtype, residual_dtype):
    """Raise TypeError or ValueError if the residual does not fit. rows, tokens, residual: shapes, as [M, H], [T] and [T, H]."""
    if residual_dtype != rows_dtype:
        raise TypeError(f"ExpertCombine: residual has dtype {residual_dtype}; it must be that of rows, {rows_dtype}")
    if residual != (tokens[0], rows[1]):
        raise ValueError(
            f"ExpertCombine: residual has shape {residual}; it must be {(tokens[0], rows[1])}, tokens by hidden"
        )


def dispatch_oracle(x_TH: np.ndarray, order_M: np.ndarray) -> np.ndarray:
    """Compute ExpertDispatch in NumPy."""
    return np.where((order_M >= 0)[:, None], x_TH[np.maximum(order_M, 0)], np.zeros((), x_TH.dtype))


def combine_oracle(rows_MH: np.ndarray, inverse_T: np.ndarray, residual_TH: np.ndarray | None = None) -> np.ndarray:
    """Compute ExpertCombine in NumPy, in the precision of its inputs."""
    moved_TH = dispatch_oracle(rows_MH, inverse_T)
    return moved_TH if residual_TH is None else np.where((inverse_T >= 0)[:, None], residual_TH + moved_TH, residual_TH)


def plan_oracle(experts_T: np.ndarray, experts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return order, inverse and offsets of tokens sorted by expert, in NumPy; int32."""
    order = np.argsort(experts_T, kind="stable").astype(np.int32)
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order), dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(experts_T, minlength=experts))]).astype(np.int32)
    return order, inverse, offsets
