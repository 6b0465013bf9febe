"""Adam of the dense parameters."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn
from mindspore.common.initializer import Zero

from ascend_ops.adam import AdamRows, every_row
from pangu_sigma.config import Config
from pangu_sigma.model.declare import decays, declare


class AdamState(Protocol):
    """The state that an Adam of dense parameters keeps from step to step; each kind of step has its own Adam."""

    weights: ParameterTuple
    moments: ParameterTuple
    variances: ParameterTuple
    step: Parameter


class DenseAdam(nn.Cell):
    """Adam of the dense parameters: for its operator they are a store of one row, which is always active."""

    def __init__(self, config: Config, parameters: list[Parameter]):
        super().__init__()
        self.weights = ParameterTuple(parameters)
        self.moments = ParameterTuple([declare(f"{p.name}.moment", p.shape, Zero(), decay=False) for p in parameters])
        self.variances = ParameterTuple(
            [declare(f"{p.name}.variance", p.shape, Zero(), decay=False) for p in parameters]
        )
        self.step = Parameter(Tensor(np.zeros(1, np.int32)), name="dense.step")
        rate = config.train.optimizer.weight_decay
        self.decay = Tensor(np.array([rate * decays(p) for p in parameters], np.float32))
        self.adam = AdamRows()
        self.active, self.offsets = every_row(1)

    def update(self, grads, hyper):
        return self.adam(
            self.weights, self.moments, self.variances, grads, self.step, self.active, self.offsets, hyper, self.decay
        )
