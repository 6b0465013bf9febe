"""Learning-rate schedule: linear warm-up to the peak, half a cosine down, then constant.

The lengths and the final rate are the paper's numbers in the configuration; the shape of the decay is PanGu-α's.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor

from pangu_sigma.config import OptimizerConfig
from pangu_sigma.mindformers_import import quiet_mindformers


class Schedule:
    """Learning-rate schedule with MindFormers' cosine, evaluated on the host.

    The rate is an input of the step graph: MindFormers' schedules branch on the step, and a branch inside a graph of CPU and NPU
    operators cuts it into several.
    """

    def __init__(self, config: OptimizerConfig):
        with quiet_mindformers():
            from mindformers.core.lr import CosineWithWarmUpLR

        steps = config.warmup_steps + config.decay_steps
        self._cell = CosineWithWarmUpLR(
            learning_rate=config.peak_lr, warmup_steps=config.warmup_steps, total_steps=steps, lr_end=config.end_lr
        )

    def __call__(self, update: int) -> float:
        """Return the learning rate of update number `update`, counted from 1."""
        return float(self._cell(Tensor(update, ms.float32)))
