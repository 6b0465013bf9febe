"""Gradient clipping by the global norm, and the check that gradients are finite. Plain operators, the same in every step graph."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, ops

SMALLEST_NORM = 1e-12
"""Added to the norm, so that gradients of zero are not divided by zero."""


def is_finite(norm):
    """Return 1.0 if the global gradient norm is finite, which means that no gradient overflowed, else 0.0."""
    return ops.cast(ops.isfinite(norm), ms.float32)


def gradient_factor(norm, scale, clip_norm):
    """Return the factor for the gradients: it undoes the loss scale and clips their global norm to `clip_norm`.

    norm: global norm of the gradients without the loss scale. scale: the loss scale that they still carry.
    """
    return ops.minimum(clip_norm / (norm + SMALLEST_NORM), Tensor(1.0, ms.float32)) / scale
