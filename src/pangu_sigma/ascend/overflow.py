"""Overflow on a chip that saturates: Ascend 910A turns what is too large into the largest number and raises a flag.

A norm that is finite says nothing there, so the step asks for the flag. Ascend 910B and later give infinity, which the norm shows.
"""

from __future__ import annotations

import os

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore._c_expression import MSContext
from mindspore.ops.operations.math_ops import NPUClearFloatStatusV2, NPUGetFloatStatusV2

INFINITY = ("ascend910b", "ascend910_93", "ascend950")
"""Chips, by MindSpore's names, whose overflow is infinity unless MS_ASCEND_CHECK_OVERFLOW_MODE says otherwise."""


def saturates() -> bool:
    """Whether the device in use hides overflow. A chip that MindSpore does not name, as when it only compiles, counts as 910A."""
    if ms.get_context("device_target") != "Ascend":
        return False
    chip = MSContext.get_instance().get_ascend_soc_version()
    return chip not in INFINITY or os.environ.get("MS_ASCEND_CHECK_OVERFLOW_MODE") == "SATURATION_MODE"


class OverflowFlag(nn.Cell):
    """construct(after) -> float32 (), above 0 if any operator before `after` overflowed on this rank since the last call.

    It is cleared as it is read, so that what comes next starts without.
    """

    def __init__(self):
        super().__init__()
        self.read, self.clear = NPUGetFloatStatusV2(), NPUClearFloatStatusV2()
        self.unset = Tensor(np.zeros(8, np.int32))

    def construct(self, after):
        flags = self.read(ops.depend(self.unset, after))
        cleared = self.clear(ops.depend(self.unset, flags))
        raised = ops.ReduceSum()(ops.cast(ops.not_equal(flags, self.unset), ms.float32))
        return ops.depend(raised, cleared)
