"""Clipping by the global norm of the gradients, and the verdict on them. Plain operators, the same in every graph of a step."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, ops

SMALLEST_NORM = 1e-12
"""Added to the norm, so that gradients of zero are not divided by zero."""


def is_finite(norm):
    """1.0 if the norm is a finite number, so that no gradient overflowed, else 0.0."""
    return ops.cast(ops.isfinite(norm), ms.float32)


def update_factor(norm, scale, clip_norm):
    """The number that gradients are multiplied with: it undoes the loss scale and shortens them to `clip_norm`, if they are longer.

    norm: global norm of the gradients without the loss scale. scale: the loss scale that they still carry.
    """
    return ops.minimum(clip_norm / (norm + SMALLEST_NORM), Tensor(1.0, ms.float32)) / scale
