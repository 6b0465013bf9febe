"""Tokens to their experts and back, and the FFN they meet there.

Shape suffixes: T tokens, H hidden, F ffn, A active experts, C capacity.

Dispatch and combine have no parameters and do not look at the tokens: the routing plan says which row goes where. Two layouts of
the sorted rows exist, and each has its FFN:

* grouped: [T, H], rows of expert a at offsets[a] … offsets[a + 1] - 1; `GroupedFFN` (CPU training). Nothing is padded.
* padded: [A, C, H]; `PaddedFFN`, two BatchMatMuls (exported graphs, which run where no kernel of ours is).
"""

from __future__ import annotations

from mindspore import nn, ops


class MoveRows(nn.Cell):
    """Gather rows by a permutation whose inverse is known, so that the gradient is a gather too.

    construct(x_TH, index, inverse) -> rows of x in the order of `index`. Dispatch: (order, inverse). Combine: (inverse, order).
    """

    def __init__(self):
        super().__init__()
        self.gather = ops.Gather()

    def construct(self, x_TH, index, inverse):
        return self.gather(x_TH, index, 0)

    def bprop(self, x_TH, index, inverse, out, dout):
        return self.gather(dout, inverse, 0), ops.zeros_like(index), ops.zeros_like(inverse)


class PaddedFFN(nn.Cell):
    """The contract of `ascend_ops.grouped_ffn.GroupedFFN` for rows padded to [A, C, H]; offsets are not needed."""

    def __init__(self):
        super().__init__()
        self.up = ops.BatchMatMul(transpose_b=True)
        self.down = ops.BatchMatMul()
        self.activate = ops.FastGeLU()

    def construct(self, x_ACH, w1_AFH, b1_AF, w2_AFH, b2_AH, offsets_A1):
        inner_ACF = self.activate(self.up(x_ACH, w1_AFH) + ops.expand_dims(b1_AF, 1))
        return self.down(inner_ACF, w2_AFH) + ops.expand_dims(b2_AH, 1)
