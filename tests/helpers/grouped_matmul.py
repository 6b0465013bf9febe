"""A stand-in for GroupedMatmul, which has no CPU kernel: standard operators that MindSpore differentiates.

Shape suffixes: W rows, H and F columns, A experts.
"""

from __future__ import annotations

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
