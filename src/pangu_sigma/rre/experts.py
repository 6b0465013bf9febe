"""Tokens to their experts and back, and the FFN they meet there.

Shape suffixes: T tokens, H hidden, F ffn, A active experts, C capacity.

Dispatch and combine have no parameters and do not look at the tokens: the routing plan says which row goes where. Two layouts of
the sorted rows exist, each with its own dispatch, FFN and combine:

* grouped: [T, H], rows of expert a at offsets[a] … offsets[a + 1] - 1; the operators of `ascend_ops`. Nothing is padded.
* padded: [A, C, H]; standard operators, for exported graphs, which run where no operator of ours is.
"""

from __future__ import annotations

from typing import NamedTuple

from mindspore import nn, ops

from ascend_ops.expert_dispatch import ExpertCombine, ExpertDispatch
from ascend_ops.grouped_ffn import GroupedFFN


class Experts(NamedTuple):
    """What a layer does with its rows; one layout, three cells.

    dispatch(x_TH, order, inverse_T) -> rows. ffn(rows, w1_AFH, b1_AF, w2_AFH, b2_AH, offsets_A1) -> rows.
    combine(rows, inverse_T, order, residual_TH) -> residual plus each token's row [T, H].
    """

    dispatch: nn.Cell
    ffn: nn.Cell
    combine: nn.Cell


def grouped_experts() -> Experts:
    """The layout of training."""
    return Experts(ExpertDispatch(), GroupedFFN(), ExpertCombine())


def padded_experts() -> Experts:
    """The layout of exported graphs."""
    return Experts(_PaddedDispatch(), PaddedFFN(), _PaddedCombine())


class PaddedFFN(nn.Cell):
    """The contract of `ascend_ops.grouped_ffn.GroupedFFN` for rows padded to [A, C, H]; offsets are not needed.

    The biases have an axis for the rows: a reshape in here would be one more thing for a parallel plan to place.
    """

    def __init__(self):
        super().__init__()
        self.up = ops.BatchMatMul(transpose_b=True)
        self.down = ops.BatchMatMul()
        self.activate = ops.FastGeLU()
        self.add_up, self.add_down = ops.Add(), ops.Add()

    def construct(self, x_ACH, w1_AFH, b1_A1F, w2_AFH, b2_A1H, offsets_A1):
        inner_ACF = self.activate(self.add_up(self.up(x_ACH, w1_AFH), b1_A1F))
        return self.add_down(self.down(inner_ACF, w2_AFH), b2_A1H)


class _PaddedDispatch(nn.Cell):
    def __init__(self):
        super().__init__()
        self.gather = ops.Gather()

    def construct(self, x_TH, order_AC, inverse_T):
        return self.gather(x_TH, order_AC, 0)


class _PaddedCombine(nn.Cell):
    def __init__(self):
        super().__init__()
        self.gather = ops.Gather()

    def construct(self, rows_ACH, inverse_T, order_AC, residual_TH):
        rows = ops.reshape(rows_ACH, (-1, ops.shape(residual_TH)[-1]))
        return residual_TH + self.gather(rows, inverse_T, 0)
