"""Learning-rate schedule: linear warm-up to the peak, half a cosine down, then constant.

The lengths and the final rate are the paper's numbers in the configuration; the shape of the decay is PanGu-α's.
"""

from __future__ import annotations

import math

from numpy import float32

from pangu_sigma.sections import OptimizerConfig


class Schedule:
    """Learning-rate schedule: MindFormers' CosineWithWarmUpLR bit for bit, without the seconds that importing MindFormers takes.

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
