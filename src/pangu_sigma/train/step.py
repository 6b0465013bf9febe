"""One training step as one graph.

    active experts, looked up here or brought before     ecss/store.py, ecss/prefetch.py
      → loss and gradients of every micro-batch          model/loss.py, model/
      → sums over ranks, global norm                     parallel/reduce.py
      → overflow, loss scale
      → Adam: dense parameters, active rows of the store  ascend_ops/adam.py

Shape suffixes: G micro-batches, B batch, S sequence, T tokens = B·S, M blocks, N RRE layers, A active experts.
"""

from __future__ import annotations

from typing import NamedTuple

import mindspore as ms
from mindspore import ParameterTuple, Tensor, nn, ops

from pangu_sigma.config import Config
from pangu_sigma.data.step_arrays import PASS_FIELDS, StepArrays
from pangu_sigma.ecss.prefetch import Brought
from pangu_sigma.ecss.store import ExpertStore
from pangu_sigma.model.loss import NextTokenLoss
from pangu_sigma.model.pangu_sigma import FFN_TENSORS, PanGuSigma
from pangu_sigma.optimizer.clip import is_finite, update_factor
from pangu_sigma.optimizer.dense_adam import make_dense_adam
from pangu_sigma.optimizer.hyper import Hyper
from pangu_sigma.optimizer.loss_scale import LossScale
from pangu_sigma.parallel.layout import active_entries
from pangu_sigma.parallel.ranks import ALONE, Ranks
from pangu_sigma.parallel.reduce import gradients_of


class StepResult(NamedTuple):
    """What a step reports. Its tensors are results of the graph, read on the host."""

    block_loss_GM: tuple[Tensor, ...]
    """Weighted loss of each block; the sum is the loss of the update."""
    norm: Tensor
    """Global gradient norm before clipping."""
    applied: Tensor
    """1.0, or 0.0 when the gradients overflowed, or the batch is a spike, and nothing was updated."""
    scale: Tensor
    """Loss scale that the step used."""
    norm_dense: Tensor | None = None
    """The norm's part of the dense gradients: the square of `norm` is the sum of the squares of the parts. None: not measured."""
    norm_experts: Tensor | None = None
    """The norm's part of the experts' gradients."""


class SpikeLimits(NamedTuple):
    """Limits that tell a spike with train.spikes.skip: arguments of `TrainStep` after those of `StepArrays`."""

    limits_D: Tensor | None = None
    """Largest weighted loss of each domain that is no spike, float32."""
    blocks_MD: Tensor | None = None
    """1.0 where a block of this rank is of the domain, else 0.0."""


class ScaledLoss(nn.Cell):
    """The function that a step differentiates.

    construct(scale, *arguments of NextTokenLoss) -> (scale · sum of the losses of the blocks, those losses [M])
    """

    def __init__(self, network: PanGuSigma):
        super().__init__()
        self.loss = NextTokenLoss(network)

    def construct(self, scale, *batch):
        loss_M = self.loss(*batch)
        return scale * ops.ReduceSum()(loss_M, 0), loss_M


FIRST_EXPERT = 1 + len(PASS_FIELDS)
"""Number of arguments of `ScaledLoss` before the experts."""


class TrainStep(nn.Cell):
    """Forward pass, backward pass and update.

    construct(lr, *StepArrays, *SpikeLimits, *Brought.arguments()) -> StepResult's fields
        active: the experts of all micro-batches; offsets: their tokens in each; used: their tokens summed over the micro-batches.
        experts_and_buffers: the experts that a `Prefetcher` brought, then the buffers of the next step's; without one, nothing.
    The arguments are plain ones and not the named groups of the host: see data/step_arrays.py.
    """

    def __init__(self, config: Config, network: PanGuSigma, store: ExpertStore, ranks: Ranks = ALONE):
        """ranks: all of them take the step, each with its share of the batch and of the experts."""
        super().__init__()
        optimizer = config.train.optimizer
        self.store = store
        self.dense = make_dense_adam(config, network.trainable_params(), network.embedding)
        dense = self.dense.learned
        # value_and_grad takes gradients by the numbers of arguments, so each tensor of experts is an argument of its own
        experts = tuple(range(FIRST_EXPERT, FIRST_EXPERT + len(FFN_TENSORS) * config.model.rre_layers))
        self.loss = ScaledLoss(network)  # a cell of the step's own, so that `set_train` reaches its dropout
        self.loss_and_grads = ms.value_and_grad(
            self.loss, grad_position=experts or None, weights=ParameterTuple(dense) if dense else None, has_aux=True
        )
        self.sparse, self.learns_dense = config.model.rre_layers > 0, bool(dense)
        self.scale = LossScale(config)
        entries = active_entries(config)
        of_experts = [(entries, *weight.shape[1:]) for weight in store.weights]
        self.reduce = gradients_of(config, ranks, [p.shape for p in dense], of_experts)
        self.expert_tensors = len(store.weights)
        self.micro_batches = config.train.accumulation
        self.skips_spikes = config.train.spikes.skip
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
        draws_GB4,
        order_GNT,
        inverse_GNT,
        offsets_GNA1,
        active_NA,
        used_NA1,
        limits_D=None,
        blocks_MD=None,
        next_NA=None,
        *experts_and_buffers,
    ):
        scale = self.scale.value * 1.0  # a copy: the parameter is updated below
        experts = self.store.fetch(active_NA, experts_and_buffers[: self.expert_tensors])
        block_loss: tuple = ()
        expert_grads: tuple = ()
        dense_grads: tuple = ()
        for g in range(self.micro_batches):  # unrolled while the graph is made: its conditions are no part of it
            # only data orders a graph: passes with collectives wait for each other, so that all ranks come to them in one order
            (_, loss_M), grads = self.loss_and_grads(
                ops.depend(scale, dense_grads) if g > 0 and self.reduce.chained else scale,
                rows_GBS[g],
                positions_GBS[g],
                documents_GBS[g],
                slots_GM[g],
                labels_GBS[g],
                weights_GBS[g],
                draws_GB4[g],
                order_GNT[g],
                inverse_GNT[g],
                offsets_GNA1[g],
                *experts,
            )
            of_experts, of_dense = grads if self.sparse and self.learns_dense else self.of_one_kind(grads)
            block_loss += (loss_M,)
            expert_grads = of_experts if g == 0 else add(expert_grads, of_experts)
            dense_grads = of_dense if g == 0 else add(dense_grads, of_dense)
        dense_grads, expert_grads, squares, of_dense, of_experts = self.reduce(dense_grads, expert_grads)
        # verdicts are numbers, not branches: every step runs the same operators, and Adam told 0.0 leaves its arrays as they are
        norm = ops.sqrt(squares) / scale
        finite = is_finite(norm)
        calm = self.is_calm(block_loss, squares, limits_D, blocks_MD) if self.skips_spikes else 1.0
        applied = finite * calm
        grad_scale = update_factor(norm, scale, self.clip_norm)
        updated = self.dense.update(dense_grads, self.hyper_dense(lr, grad_scale, applied))
        if self.sparse:
            hyper = self.hyper_experts(lr, grad_scale, applied)
            buffers = experts_and_buffers[self.expert_tensors :]
            updated = (updated, self.store.update(expert_grads, active_NA, used_NA1, hyper, next_NA, buffers))
        # a spike says nothing of the scale; gradients that are not finite do, be they those of a spike
        rescaled = (
            self.scale.update(finite, 1.0 - finite * (1.0 - calm)) if self.skips_spikes else self.scale.update(applied)
        )
        norms = (ops.sqrt(of_dense) / scale, ops.sqrt(of_experts) / scale)
        # a plain tuple, which `take` names; it is there once all updates are done
        return ops.depend((block_loss, norm, applied, scale, *norms), (updated, rescaled))

    def take(
        self, rate: float, arrays: StepArrays, brought: Brought | None = None, limits: SpikeLimits | None = None
    ) -> StepResult:
        """Take one step on the host's groups of tensors. brought: None without a prefetcher. limits: with train.spikes.skip."""
        groups = (*arrays, *(limits or SpikeLimits()), *(brought or Brought()).arguments())
        return StepResult(*self(Tensor(rate, ms.float32), *groups))

    def of_one_kind(self, grads):
        """Gradients of experts and of dense parameters, where only one of the two learns: value_and_grad makes no pair then."""
        return (grads, ()) if self.sparse else ((), grads)

    def is_calm(self, block_loss, squares, limits_D, blocks_MD):
        """1.0 if no domain's loss of the whole batch is above its limit, else 0.0: the same on all ranks."""
        loss_M = block_loss[0]
        for g in range(1, self.micro_batches):
            loss_M = loss_M + block_loss[g]
        loss_D = self.reduce.over_ranks(ops.ReduceSum()(ops.reshape(loss_M, (-1, 1)) * blocks_MD, 0), squares)
        return ops.ReduceMin()(ops.cast(loss_D <= limits_D, ms.float32), 0)  # false for NaN


def add(left, right):
    """Sum of two tuples of gradients."""
    total: tuple = ()
    for i in range(len(left)):
        total += (left[i] + right[i],)
    return total
