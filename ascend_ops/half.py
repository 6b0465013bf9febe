"""Cast float32 to float16 on the CPU at memory speed; the casts of MindSpore and NumPy take several times as long."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from ascend_ops.host import host_op


class CastWeights(nn.Cell):
    """Cast of weights to float32 or float16, rounded to nearest even: construct(weight). It has no gradient. On Ascend it is
    MindSpore's Cast."""

    def __init__(self, dtype: ms.Type):
        super().__init__()
        self.dtype = dtype
        uses_kernel = dtype == ms.float16 and ms.get_context("device_target") == "CPU"
        self.op = host_op("ToHalf", lambda weight: weight, lambda weight: ms.float16) if uses_kernel else None

    def construct(self, weight):
        if self.op is None:
            return ops.cast(weight, self.dtype)
        return self.op(weight)
