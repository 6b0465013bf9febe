"""AdamW of the dense parameters on the NPU, by the rule of ascend_ops/adam.py. Each rank updates the rows that it keeps."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from pangu_sigma.config import Config
from pangu_sigma.model.declare import has_weight_decay


class DeviceAdam(nn.Cell):
    """AdamW of the dense parameters on the NPU, with their moments and step count.

    MindSpore's fused operator has no bias correction, so it gets a corrected rate, ε and decay, with which it makes the same
    update: lr · c · m / (√v + ε·√(1 − β2ᵗ)) with c = √(1 − β2ᵗ) / (1 − β1ᵗ).
    """

    def __init__(self, config: Config, parameters: list[Parameter]):
        """parameters: the dense parameters that this rank updates, or their rows that it keeps."""
        super().__init__()
        options = config.train.optimizer
        self.weights = ParameterTuple(parameters)
        self.moments, self.variances = self.weights.clone("moment", "zeros"), self.weights.clone("variance", "zeros")
        self.step = Parameter(Tensor(np.zeros(1, np.int32)), name="dense.step")  # the name in `DenseAdam`
        self.beta1, self.beta2, self.eps = options.beta1, options.beta2, options.eps_dense
        self.decay = tuple(options.weight_decay * has_weight_decay(p) for p in parameters)
        self.adam = ops.AdamWeightDecay()
        self.map = ops.HyperMap()  # for MindSpore: a loop would become hundreds of nested calls

    def update(self, grads, lr, grad_scale, applied):
        """Update the parameters in place, and return tensors that depend on the update. lr: learning rate. grad_scale: factor for
        the gradients. applied: 1.0, or 0.0 to change nothing."""
        new_count = ops.assign(self.step, self.step + ops.cast(applied, ms.int32))
        step = ops.maximum(ops.reshape(ops.cast(new_count, ms.float32), ()), 1.0)  # 0 if no step was applied yet
        power1, power2 = ops.pow(self.beta1, step), ops.pow(self.beta2, step)
        unbias = ops.sqrt(1.0 - power2)
        correction = unbias / (1.0 - power1)  # the rule of the class docstring, with the operator's lr, ε and decay
        rate, eps = lr * correction * applied, self.eps * unbias
        beta1 = 1.0 - (1.0 - self.beta1) * applied  # a step that is not applied leaves the moments as they are
        beta2 = 1.0 - (1.0 - self.beta2) * applied
        update = ops.partial(_adam, self.adam, rate, beta1, beta2, eps, correction, grad_scale, applied < 0.5)
        return new_count, self.map(update, self.weights, self.moments, self.variances, self.decay, grads)


def _adam(adam, rate, beta1, beta2, eps, correction, grad_scale, is_skipped, weight, moment, variance, decay, grad):
    """Update one parameter by MindSpore's fused operator `adam`. is_skipped: True if the step is not applied; the gradient, which
    may be infinite then, becomes zero. correction: factor of the rate for the bias, which the decay must not have."""
    grad = ops.masked_fill(grad * grad_scale, is_skipped, 0.0)
    return adam(weight, moment, variance, rate, beta1, beta2, eps, decay / correction, grad)
