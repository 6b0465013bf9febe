"""Global gradient norm over all ranks, and detection of overflow in any of their gradients.

Ascend 910B and later give infinity for numbers that are too large, which the norm shows. Ascend 910A saturates: it gives the
largest number and raises a flag. A finite norm says nothing there, so the step reads the flag.
"""

from __future__ import annotations

import os

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops.operations.math_ops import NPUClearFloatStatusV2, NPUGetFloatStatusV2

from pangu_sigma.chips import CHIP_DATA, Chip
from pangu_sigma.optimizer.update import is_finite
from pangu_sigma.sections import ParallelConfig


def saturates(chip: Chip) -> bool:
    """Return True if an overflow in the step gives the largest number and raises a flag, instead of infinity. NPUs do so if their
    chip does, or if MS_ASCEND_CHECK_OVERFLOW_MODE says so; a CPU never does. chip: the configured chip."""
    by_setting = os.environ.get("MS_ASCEND_CHECK_OVERFLOW_MODE") == "SATURATION_MODE"
    return ms.get_context("device_target") == "Ascend" and (CHIP_DATA[chip].saturates or by_setting)


class OverflowFlag(nn.Cell):
    """Cell that reads the overflow flag of a rank's NPU, then clears it. construct(after) -> float32 (), above 0 if an operator
    overflowed on this rank since the last call. The flag is read after the tensor `after` has been computed."""

    def __init__(self):
        super().__init__()
        self.read, self.clear = NPUGetFloatStatusV2(), NPUClearFloatStatusV2()  # CANN's flag is a vector of 8
        self.unset = Tensor(np.zeros(8, np.int32))

    def construct(self, after):
        """Return a number above 0 if an operator overflowed on this rank. after: tensors to compute before the reading."""
        flags = self.read(ops.depend(self.unset, after))
        cleared = self.clear(ops.depend(self.unset, flags))
        raised = ops.ReduceSum()(ops.cast(ops.not_equal(flags, self.unset), ms.float32))
        return ops.depend(raised, cleared)


class OverflowCheck(nn.Cell):
    """Global gradient norm of an Ascend step, and whether all gradients are finite."""

    def __init__(self, weights: list[Parameter], parallel: ParallelConfig):
        """weights: the weights whose gradients are checked, marked by `sharding.mark_parameters`."""
        super().__init__(auto_prefix=False)
        # a gradient that several ranks hold counts once
        self.norm_weights = tuple(1.0 if weight.cut.divided else 1.0 / weight.cut.replicas for weight in weights)
        self.map, self.sum = ops.HyperMap(), ops.AddN()
        self.all_reduce = ops.AllReduce() if parallel.ranks > 1 else None
        self.overflow = OverflowFlag() if saturates(parallel.chip) else None

    def construct(self, grads, scale, foreign_grads):
        """Return the global norm without the loss scale, and 1.0 if no gradient overflowed on any rank, else 0.0. scale: the loss
        scale. foreign_grads: gradients of another stage's weights; they are checked for overflow, but not in the norm."""
        squares = self.sum_over_ranks(self.sum(self.map(_weighted_square_sum, grads, self.norm_weights)))
        norm = ops.sqrt(squares) / scale
        finite = is_finite(norm)
        if self.overflow is not None:
            # the flag is read after everything that may raise it, and after the sum of the squares, so that all ranks come to the
            # two sums in the same order
            overflows = self.sum_over_ranks(self.overflow((foreign_grads, squares)))
            finite = finite * ops.cast(overflows < 0.5, ms.float32)
        return norm, finite

    def sum_over_ranks(self, value):
        return value if self.all_reduce is None else self.all_reduce(value)


def _weighted_square_sum(grad, weight):
    """Return the sum of a gradient's squares, times `weight`: 1 ÷ the number of ranks that hold this gradient."""
    return ops.ReduceSum()(ops.square(ops.cast(grad, ms.float32))) * weight
