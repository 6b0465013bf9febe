"""Hyperparameters of one Adam update, as the vector that `ascend_ops.adam` reads."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn

from ascend_ops.adam import HYPER
from pangu_sigma.sections import OptimizerConfig


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
