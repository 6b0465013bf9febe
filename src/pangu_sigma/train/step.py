"""One training step as one graph.

    active experts, looked up here or brought before     ecss/store.py, ecss/prefetch.py
      → loss and gradients of every micro-batch          train/loss.py, model/
      → sums over ranks, global norm                     parallel/reduce.py
      → overflow, loss scale
      → Adam: dense parameters, active rows of the store  ascend_ops/adam.py

Shape suffixes: G micro-batches, B batch, S sequence, T tokens = B·S, M blocks, N RRE layers, A active experts.
"""

from __future__ import annotations

from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from ascend_ops.adam import HYPER, AdamRows, every_row
from pangu_sigma.config import Config, OptimizerConfig
from pangu_sigma.ecss.store import ExpertStore
from pangu_sigma.model.declare import Zero, decays, declare
from pangu_sigma.model.pangu_sigma import FFN_TENSORS, PanGuSigma
from pangu_sigma.parallel.layout import active_places
from pangu_sigma.parallel.ranks import ALONE, Ranks
from pangu_sigma.parallel.reduce import gradients_of
from pangu_sigma.train.loss import FIRST_EXPERT, ScaledLoss


class StepResult(NamedTuple):
    """What a step reports; all tensors on the host side of the graph."""

    block_loss_GM: tuple[Tensor, ...]
    """Weighted loss of each block; the sum is the loss of the update."""
    norm: Tensor
    """Global gradient norm before clipping."""
    applied: Tensor
    """1.0, or 0.0 when the gradients overflowed and nothing was updated."""
    scale: Tensor
    """Loss scale the step used."""


class LossScale(nn.Cell):
    """Dynamic loss scale: halves on overflow, doubles after `window` steps without one. State is in parameters."""

    def __init__(self, config: Config):
        super().__init__()
        options = config.train.loss_scale
        self.value = Parameter(Tensor(options.initial, ms.float32), name="loss_scale")
        self.good_steps = Parameter(Tensor(0, ms.int32), name="loss_scale.good_steps")
        self.window = options.window

    def update(self, finite, learns=1.0):
        """Advance after a step whose gradients were finite, 1.0, or not, 0.0. learns: 0.0 to stay as it is."""
        finite = 1.0 - learns * (1.0 - finite)
        good = (self.good_steps + ops.cast(learns, ms.int32)) * ops.cast(finite, ms.int32)
        grow = ops.cast(good >= self.window, ms.float32)
        factor = finite * (1.0 + grow) + (1.0 - finite) * 0.5
        scaled = ops.assign(self.value, ops.maximum(self.value * factor, Tensor(1.0, ms.float32)))
        return ops.depend(ops.assign(self.good_steps, good * ops.cast(1.0 - grow, ms.int32)), scaled)


class Hyper(nn.Cell):
    """Builds the `hyper` vector of ascend_ops.adam. Sums of constants: a Stack would need types that gradients do not have yet."""

    def __init__(self, optimizer: OptimizerConfig, eps: float):
        super().__init__()
        fixed = {"beta1": optimizer.beta1, "beta2": optimizer.beta2, "eps": eps}
        self.fixed = Tensor(np.array([fixed.get(name, 0.0) for name in HYPER], np.float32))
        unit = np.eye(len(HYPER), dtype=np.float32)
        self.lr, self.grad_scale, self.apply = (Tensor(unit[HYPER.index(n)]) for n in ("lr", "grad_scale", "apply"))

    def construct(self, lr, grad_scale, applied):
        return self.fixed + lr * self.lr + grad_scale * self.grad_scale + applied * self.apply


class DenseAdam(nn.Cell):
    """Adam state of the dense parameters: a store of one row, always active."""

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


class TrainStep(nn.Cell):
    """Forward, backward and update.

    construct(lr, rows_GBS, positions_GBS, documents_GBS, slots_GM, labels_GBS, weights_GBS, order_GNT, inverse_GNT, offsets_GNA1,
    active_NA, used_NA1, *transfer) -> StepResult's fields
        active: the experts of all micro-batches; offsets: their tokens in each; used: their tokens summed over the micro-batches.
        transfer: what a `Prefetcher` gives, or nothing: next_NA, the experts brought, and where the next step's go.
    """

    def __init__(self, config: Config, network: PanGuSigma, store: ExpertStore, ranks: Ranks = ALONE):
        """ranks: all of them take the step, each with its share of the batch and of the experts."""
        super().__init__()
        optimizer = config.train.optimizer
        self.store = store
        dense = network.trainable_params()
        self.dense = DenseAdam(config, dense)
        experts = tuple(range(FIRST_EXPERT, FIRST_EXPERT + len(FFN_TENSORS) * config.model.rre_layers))
        self.loss = ScaledLoss(network)  # a cell of the step's own, so that `set_train` reaches its dropout
        self.loss_and_grads = ms.value_and_grad(
            self.loss, grad_position=experts or None, weights=ParameterTuple(dense), has_aux=True
        )
        self.sparse = config.model.rre_layers > 0
        self.scale = LossScale(config)
        places = active_places(config)
        of_experts = [(places, *weight.shape[1:]) for weight in store.weights]
        self.reduce = gradients_of(config, ranks, [p.shape for p in dense], of_experts)
        self.expert_tensors = len(store.weights)
        self.micro_batches = config.train.accumulation
        self.clip_norm = optimizer.clip_norm
        self.hyper_dense = Hyper(optimizer, optimizer.eps_dense)
        self.hyper_experts = Hyper(optimizer, optimizer.eps_experts)

    def construct(
        self,
        lr,
        rows_GBS,
        positions_GBS,
        documents_GBS,
        slots_GM,
        labels_GBS,
        weights_GBS,
        order_GNT,
        inverse_GNT,
        offsets_GNA1,
        active_NA,
        used_NA1,
        *transfer,
    ):
        scale = self.scale.value * 1.0  # a copy: the parameter is updated below
        next_NA = transfer[0] if transfer else None
        experts = self.store.fetch(active_NA, transfer[1 : 1 + self.expert_tensors])
        block_loss: tuple = ()
        expert_grads: tuple = ()
        dense_grads: tuple = ()
        for g in range(self.micro_batches):
            (_, loss_M), grads = self.loss_and_grads(
                ops.depend(scale, dense_grads) if g > 0 and self.reduce.chained else scale,
                rows_GBS[g],
                positions_GBS[g],
                documents_GBS[g],
                slots_GM[g],
                labels_GBS[g],
                weights_GBS[g],
                order_GNT[g],
                inverse_GNT[g],
                offsets_GNA1[g],
                *experts,
            )
            of_experts, of_dense = grads if self.sparse else ((), grads)
            block_loss += (loss_M,)
            expert_grads = of_experts if g == 0 else add(expert_grads, of_experts)
            dense_grads = of_dense if g == 0 else add(dense_grads, of_dense)
        dense_grads, expert_grads, squares = self.reduce(dense_grads, expert_grads)
        norm = ops.sqrt(squares) / scale
        applied = ops.cast(ops.isfinite(norm), ms.float32)
        grad_scale = ops.minimum(self.clip_norm / (norm + 1e-12), Tensor(1.0, ms.float32)) / scale
        updated = self.dense.update(dense_grads, self.hyper_dense(lr, grad_scale, applied))
        if self.sparse:
            hyper = self.hyper_experts(lr, grad_scale, applied)
            copies = transfer[1 + self.expert_tensors :]
            updated = (updated, self.store.update(expert_grads, active_NA, used_NA1, hyper, next_NA, copies))
        rescaled = self.scale.update(applied)
        return ops.depend((block_loss, norm, applied, scale), (updated, rescaled))


def add(left, right):
    """Sum of two tuples of gradients."""
    total: tuple = ()
    for i in range(len(left)):
        total += (left[i] + right[i],)
    return total
