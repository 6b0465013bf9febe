"""Adam of the dense parameters. In fine-tuning it may update none of them, or some rows of the word table only."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import Zero

from ascend_ops.adam import HYPER, AdamRows, every_row
from pangu_sigma.config import Config
from pangu_sigma.domains import domains_of
from pangu_sigma.model.declare import has_weight_decay, make_parameter

APPLY = HYPER.index("apply")
"""Index of `apply` in the hyperparameter vector of Adam."""


class DenseAdam(nn.Cell):
    """Adam of the dense parameters, by `AdamRows`, which takes each of them as a store of one row that is always active.
    learned: parameters whose gradients `update(grads, hyper)` takes, in this order; others and their state keep their bits."""

    def __init__(self, config: Config, parameters: list[Parameter]):
        super().__init__()
        self.learned = parameters
        self.weights = ParameterTuple(parameters)
        self.moments, self.variances = (
            ParameterTuple([make_parameter(f"{p.name}.{kind}", p.shape, Zero(), decay=False) for p in parameters])
            for kind in ("moment", "variance")
        )
        self.step = Parameter(Tensor(np.zeros(1, np.int32)), name="dense.step")
        rate = config.train.optimizer.weight_decay
        self.decay = Tensor(np.array([rate * has_weight_decay(p) for p in parameters], np.float32))
        self.adam = AdamRows()
        self.active, self.offsets = every_row(1)

    def update(self, grads, hyper):
        """Update the learned parameters in place. grads: one gradient per learned parameter. hyper: as `Hyper` returns."""
        return self.adam(
            self.weights, self.moments, self.variances, grads, self.step, self.active, self.offsets, hyper, self.decay
        )


class FrozenAdam(DenseAdam):
    """Adam state of dense parameters that do not learn; `update` changes nothing."""

    def __init__(self, config: Config, parameters: list[Parameter]):
        super().__init__(config, parameters)
        self.learned = []

    def update(self, grads, hyper):
        return hyper


class SlotAdam(DenseAdam):
    """Adam of the rows of the word table in chosen embedding slots; all other dense parameters are frozen."""

    def __init__(self, config: Config, parameters: list[Parameter], table: Parameter, slots: list[int]):
        """table: the word table, one of the parameters. slots: numbers of the slots that learn, ascending."""
        super().__init__(config, parameters)
        index = next(i for i, parameter in enumerate(parameters) if parameter is table)
        self.learned = [table]
        self.table, self.moment, self.variance = (
            ParameterTuple([arrays[index]]) for arrays in (self.weights, self.moments, self.variances)
        )
        self.table_decay = Tensor(self.decay.asnumpy()[index : index + 1])
        rows = (np.array(slots)[:, None] * config.model.slot_rows + np.arange(config.model.slot_rows)).ravel()
        self.rows, self.offsets = (Tensor(values.astype(np.int32)) for values in (rows, np.arange(len(rows) + 1)))
        self.zeros = Tensor(np.zeros(table.shape[0], np.int32))
        self.pick = ops.Gather()

    def update(self, grads, hyper):
        """Update the rows of the slots in place, and return the new step count. grads: a tuple of the gradient of the whole word
        table. hyper: as `Hyper` returns."""
        # the operator counts steps by row, in a copy; the parameter, which checkpoints save, is one count for all rows
        steps = self.step + self.zeros
        row_grads = self.pick(grads[0], self.rows, 0)
        updated = self.adam(
            *(self.table, self.moment, self.variance, (row_grads,)),
            *(steps, self.rows, self.offsets, hyper, self.table_decay),
        )
        applied = ops.cast(ops.reshape(hyper[APPLY], (1,)), ms.int32)
        return ops.assign_add(self.step, ops.depend(applied, updated))


def make_dense_adam(config: Config, parameters: list[Parameter], table: Parameter) -> DenseAdam:
    """Return the Adam of the dense parameters that `finetune.learn` selects; without that section all of them learn.

    table: the word table, one of the parameters.
    """
    options = config.finetune
    if options is None or options.learn == "all":
        return DenseAdam(config, parameters)
    if options.learn == "experts":
        return FrozenAdam(config, parameters)
    domains = domains_of(config)
    return SlotAdam(config, parameters, table, sorted({domains.named(name).slot for name in options.domains}))
