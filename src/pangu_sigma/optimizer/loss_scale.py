"""Dynamic loss scale of a training step in float16."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from pangu_sigma.config import Config

NO_END = (1 << 31) - 1
"""Growth window, in steps, that is longer than any run."""


class LossScale(nn.Cell):
    """Dynamic loss scale: halves on overflow and doubles after `window` steps without one. Its state is in parameters.

    Only float16 needs one. In float32 and bfloat16, whose range is the same, a new run has the scale 1, and no scale grows: the
    squares of scaled gradients would leave the range some day, and that step would be lost.
    """

    def __init__(self, config: Config):
        super().__init__()
        grows = config.train.compute_dtype == "float16"
        self.value = Parameter(Tensor(config.train.first_loss_scale, ms.float32), name="loss_scale")
        self.good_steps = Parameter(Tensor(0, ms.int32), name="loss_scale.good_steps")
        self.window = config.train.loss_scale.window if grows else NO_END

    def update(self, finite, learns=1.0):
        """Update the scale after a step, and return the new one.

        finite: 1.0 if the gradients were finite, else 0.0. learns: 0.0 if the step was run for
        its losses alone, so that the scale stays."""
        finite = 1.0 - learns * (1.0 - finite)
        good = (self.good_steps + ops.cast(learns, ms.int32)) * ops.cast(finite, ms.int32)
        grow = ops.cast(good >= self.window, ms.float32)
        factor = finite * (1.0 + grow) + (1.0 - finite) * 0.5
        scale = ops.maximum(self.value * factor, Tensor(1.0, ms.float32))
        counted = ops.assign(self.good_steps, good * ops.cast(1.0 - grow, ms.int32))
        return ops.depend(scale, (ops.assign(self.value, scale), counted))
