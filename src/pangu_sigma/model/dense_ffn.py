"""FFN of a dense layer, which all tokens share: by the grouped kernel, or by standard operators.

Shape suffixes: T tokens, H hidden, F ffn.
"""

from __future__ import annotations

from mindspore import nn, ops

from ascend_ops.grouped_ffn import GroupedFFN, one_expert
from pangu_sigma.rre.experts import ActivatedFFN
from pangu_sigma.sections import Activation


class OneExpertFFN(nn.Cell):
    """FFN of a dense layer, by the kernel of experts: a single expert, to which every token goes.
    construct(x_TH, w1_FH, b1_F, w2_FH, b2_H) -> y_TH"""

    def __init__(self, activation: Activation):
        super().__init__()
        self.ffn = GroupedFFN(activation)

    def construct(self, x_TH, w1_FH, b1_F, w2_FH, b2_H):
        w1, b1, w2, b2 = (ops.reshape(w, (1, *ops.shape(w))) for w in (w1_FH, b1_F, w2_FH, b2_H))
        return self.ffn(x_TH, w1, b1, w2, b2, one_expert(ops.shape(x_TH)[0]))


class MatMulFFN(ActivatedFFN):
    """FFN of a dense layer by standard operators, for exported graphs and for Ascend, with the arguments of `OneExpertFFN`."""

    def __init__(self, activation: Activation):
        super().__init__(activation)
        self.up = ops.MatMul(transpose_b=True)
        self.down = ops.MatMul()
        self.add_up, self.add_down = ops.BiasAdd(), ops.BiasAdd()

    def construct(self, x_TH, w1_FH, b1_F, w2_FH, b2_H):
        w1, b1, w2, b2 = (ops.cast(w, x_TH.dtype) for w in (w1_FH, b1_F, w2_FH, b2_H))
        inner_TF = self.activated(self.add_up(self.up(x_TH, w1), b1))
        return self.add_down(self.down(inner_TF, w2), b2)
