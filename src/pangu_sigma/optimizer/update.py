"""What scales an update, the same in every step graph: learning rate, loss scale, clipping by the global norm, and the vector of
hyperparameters in which `ascend_ops.adam` reads them."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from numpy import float32

from ascend_ops.adam import HYPER
from pangu_sigma.config import Config
from pangu_sigma.sections import OptimizerConfig


class Schedule:
    """Learning-rate schedule: linear warm-up to the peak, half a cosine down, then constant. It equals MindFormers'
    CosineWithWarmUpLR bit for bit, without the seconds that importing MindFormers takes. The configuration has lengths and final
    rate from the paper; the shape of the decay is PanGu-α's.

    The rate is an input of the step graph: a branch on the step inside a graph of CPU and NPU operators cuts it into several.
    """

    def __init__(self, config: OptimizerConfig):
        self._peak, self._end = float32(config.peak_lr), float32(config.end_lr)
        self._warmup, self._decay = float32(config.warmup_steps), float32(config.decay_steps)

    def __call__(self, update: int) -> float:
        """Return the learning rate of update number `update`, counted from 1. Each operation is rounded to float32."""
        step = float32(update)
        if step < self._warmup:
            return float(self._peak * (step / self._warmup))
        if step >= self._warmup + self._decay:
            return float(self._end)
        cosine = float32(math.cos(float32(math.pi) * ((step - self._warmup) / self._decay)))
        return float(self._end + (self._peak - self._end) * (float32(0.5) * (float32(1.0) + cosine)))


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

        finite: 1.0 if the gradients were finite, else 0.0. learns: 0.0 if the step ran for its losses alone: the scale stays."""
        finite = 1.0 - learns * (1.0 - finite)
        good = (self.good_steps + ops.cast(learns, ms.int32)) * ops.cast(finite, ms.int32)
        grow = ops.cast(good >= self.window, ms.float32)
        factor = finite * (1.0 + grow) + (1.0 - finite) * 0.5
        scale = ops.maximum(self.value * factor, Tensor(1.0, ms.float32))
        new_count = ops.assign(self.good_steps, good * ops.cast(1.0 - grow, ms.int32))
        return ops.depend(scale, (ops.assign(self.value, scale), new_count))


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


class Hyper(nn.Cell):
    """Hyperparameter vector of one Adam update: construct(lr, grad_scale, applied) -> `hyper` for `AdamRows`. lr: learning rate.
    grad_scale: factor for the gradients. applied: 1.0, or 0.0 to change nothing.

    The vector is a sum of constants: MindSpore's Stack would need types that gradients do not have yet when the graph is made.
    """

    def __init__(self, optimizer: OptimizerConfig, eps: float):
        super().__init__()
        fixed = {"beta1": optimizer.beta1, "beta2": optimizer.beta2, "eps": eps}
        self.fixed = Tensor(np.array([fixed.get(name, 0.0) for name in HYPER], np.float32))
        unit = np.eye(len(HYPER), dtype=np.float32)
        self.lr, self.grad_scale, self.apply = (Tensor(unit[HYPER.index(n)]) for n in ("lr", "grad_scale", "apply"))

    def construct(self, lr, grad_scale, applied):
        return self.fixed + lr * self.lr + grad_scale * self.grad_scale + applied * self.apply
