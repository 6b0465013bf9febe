"""Dispatch of tokens to their experts, the expert FFN, and the combine of its results.

Shape suffixes: T tokens, H hidden, F ffn, A active experts, C capacity.

Dispatch and combine have no parameters and do not read token values: the routing plan says which row goes where. Two layouts of the
sorted rows are here, each with its own dispatch, FFN and combine:

* grouped: [T, H], rows of expert a at offsets[a] … offsets[a + 1] - 1; the operators of `ascend_ops`. Nothing is padded.
* padded: [A, C, H]; standard operators, for exported graphs, which run where our operators are not installed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from mindspore import nn, ops

from ascend_ops.expert_dispatch import ExpertCombine, ExpertDispatch
from ascend_ops.grouped_ffn import GroupedFFN
from pangu_sigma.sections import Activation, Segment


class Experts(NamedTuple):
    """The three cells of a segment of an RRE layer in one layout: dispatch, expert FFN, combine.

    dispatch(x_TH, order, inverse_T) -> rows: each row is the hidden state of its token.
    ffn(rows, w1_AFH, b1_AF, w2_AFH, b2_AH, offsets_A1) -> rows: each row is the output of its expert.
    combine(rows, inverse_T, order, residual_TH) -> [T, H]: the residual plus each token's row.

    Dispatch and combine take first the index by which they gather, then the one by which their gradient gathers: that is why
    `order` and `inverse` change sides, as in the operators `ExpertDispatch` and `ExpertCombine`.
    offsets_A1 is None in layouts where each expert's rows have an axis of their own: `PaddedFFN` does not read it.
    """

    dispatch: nn.Cell
    ffn: nn.Cell
    combine: nn.Cell


def grouped_experts(activation: Activation, kind: Segment = "own") -> Experts:
    """Return the cells of a segment in the grouped layout: rows sorted by expert, no padding. For training. kind: not read."""
    return Experts(ExpertDispatch(), GroupedFFN(activation), ExpertCombine())


def padded_experts(activation: Activation, kind: Segment = "own") -> Experts:
    """Return the cells of a segment in the padded layout: C rows for each expert. For exported graphs. kind: not read."""
    return Experts(_PaddedDispatch(), PaddedFFN(activation), _PaddedCombine())


class ActivatedFFN(nn.Cell):
    """Base class of FFNs that are built of standard MindSpore operators. It applies the activation.

    The activations `fast_gelu` and `tanh` take one operator each. `erf` takes four, among them erfc, because it has no cancellation
    where x · Φ(x) is small.
    """

    def __init__(self, activation: Activation):
        super().__init__()
        self.activation = activation
        if activation == "erf":
            self.scale, self.activate, self.halve, self.gate = ops.Mul(), ops.Erfc(), ops.Mul(), ops.Mul()
        else:
            self.activate = {"fast_gelu": ops.FastGeLU, "tanh": ops.GeLU}[activation]()

    def activated(self, x):
        """Apply the activation to each element of x."""
        if self.activation == "erf":  # x · Φ(x) = x/2 · erfc(-x/√2)
            return self.gate(self.halve(x, 0.5), self.activate(self.scale(x, -math.sqrt(0.5))))
        return self.activate(x)


class PaddedFFN(ActivatedFFN):
    """Expert FFN of standard operators on rows [A, C, H]: C rows for each expert, padding included. It does not read the offsets.

    The biases have an axis for the rows, [A, 1, F] and [A, 1, H]: a reshape in here would need a strategy of its own under
    auto-parallel.
    """

    def __init__(self, activation: Activation):
        super().__init__(activation)
        self.up = ops.BatchMatMul(transpose_b=True)
        self.down = ops.BatchMatMul()
        self.add_up, self.add_down = ops.Add(), ops.Add()

    def construct(self, x_ACH, w1_AFH, b1_A1F, w2_AFH, b2_A1H, offsets_A1):
        inner_ACF = self.activated(self.add_up(self.up(x_ACH, w1_AFH), b1_A1F))
        outer_ACH = self.down(inner_ACF, w2_AFH)
        return outer_ACH if b2_A1H is None else self.add_down(outer_ACH, b2_A1H)


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
