"""Training step as one graph.

    active experts, looked up in the store               ecss/store.py
      → loss and gradients of every micro-batch          model/
      → sums over ranks, global norm                     ranks/reduce.py
      → overflow, loss scale
      → Adam: dense parameters, active rows of the store  ascend_ops/adam.py

With `ecss.update=worker` a worker updates the rows instead, from the end of the step on and into the next one: ecss/worker.py.

Shape suffixes: G micro-batches, B batch, S sequence, T tokens = B·S, M blocks, N segments of the RRE layers, A active experts.
"""

from __future__ import annotations

from typing import NamedTuple

import mindspore as ms
from mindspore import ParameterTuple, Tensor, nn, ops

from pangu_sigma.config import Config
from pangu_sigma.data.batches import MICRO_BATCH_FIELDS, StepArrays
from pangu_sigma.ecss.store import ExpertStore
from pangu_sigma.ecss.worker import update_by_worker
from pangu_sigma.model.pangu_sigma import NextTokenLoss, PanGuSigma
from pangu_sigma.optimizer.dense_adam import make_dense_adam
from pangu_sigma.optimizer.update import Hyper, LossScale, gradient_factor, is_finite
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, Ranks
from pangu_sigma.ranks.reduce import make_gradient_reduction


class StepResult(NamedTuple):
    """Result of a training step: the tensors that its graph returns, which the host reads."""

    block_loss_GM: tuple[Tensor, ...]
    """Weighted loss of each block (sequences of one domain); their sum is the loss of the step."""
    norm: Tensor
    """Global gradient norm before clipping."""
    applied: Tensor
    """1.0 if the step updated the weights; 0.0 if gradients overflowed or the batch is a loss spike."""
    scale: Tensor
    """Loss scale that the step used."""
    norm_dense: Tensor | None = None
    """Norm of the dense gradients; None: not measured."""
    norm_experts: Tensor | None = None
    """Norm of the experts' gradients; None: not measured. norm² = norm_dense² + norm_experts²."""
    rows_GTH: tuple[Tensor, ...] = ()
    """Gradient of the rows of each token, for each micro-batch; () if no rows learn."""
    rows_hyper: Tensor | None = None
    """Hyperparameters of the update of rows, as `HYPER`; None if no rows learn."""


class SpikeLimits(NamedTuple):
    """Loss limits of the domains, by which a training step recognizes a loss spike and skips it (train.spikes.skip)."""

    limits_D: Tensor | None = None
    """Weighted loss of each domain above which the batch is a spike, float32."""
    blocks_MD: Tensor | None = None
    """1.0 where a block (sequences of one domain) of this rank belongs to the domain, else 0.0."""


class ScaledLoss(nn.Cell):
    """Loss of a micro-batch times the loss scale: the function that a training step differentiates.

    construct(scale, *arguments of NextTokenLoss) -> (scale · sum of the block losses, block losses [M])
    """

    def __init__(self, network: PanGuSigma):
        super().__init__()
        self.loss = NextTokenLoss(network)

    def construct(self, scale, *batch):
        """Return the scaled loss of a micro-batch, and the unscaled loss of each block, [M]."""
        loss_M = self.loss(*batch)
        return scale * ops.ReduceSum()(loss_M, 0), loss_M


EXPERTS_ARGUMENT = 1 + len(MICRO_BATCH_FIELDS)
"""Index of the experts among the arguments of `ScaledLoss`."""
E_ARGUMENT = EXPERTS_ARGUMENT - 1
"""Index of e, the rows of the tokens (`model.rows`)."""


class TrainStep(nn.Cell):
    """Training step: forward pass, backward pass and update. Call it by `take`."""

    def __init__(self, config: Config, network: PanGuSigma, store: ExpertStore, ranks: Ranks = SINGLE_PROCESS):
        """ranks: the processes that take the step together, each with its share of the batch and of the experts."""
        super().__init__()
        optimizer = config.train.optimizer
        self.store = store
        self.dense = make_dense_adam(config, network.trainable_params(), network.embedding)
        dense = self.dense.learned
        self.loss = ScaledLoss(network)  # a cell of this one, so that `set_train` reaches its dropout
        self.sparse, self.learns_dense = config.model.rre_layers > 0, bool(dense)
        self.has_rows, self.learns_rows = bool(config.model.rows), store.rows is not None and any(store.rows.learns)
        # `value_and_grad` returns one gradient for one position, and a tuple for a tuple of positions: see `split_gradients`
        self.learning_input = E_ARGUMENT if self.learns_rows else EXPERTS_ARGUMENT if self.sparse else None
        self.loss_and_grads = ms.value_and_grad(
            self.loss,
            grad_position=(E_ARGUMENT, EXPERTS_ARGUMENT) if self.learns_rows and self.sparse else self.learning_input,
            weights=ParameterTuple(dense) if dense else None,
            has_aux=True,
        )
        self.learns = tuple(experts.learns for experts in store.segments)
        self.scale = LossScale(config)
        self.reduce = make_gradient_reduction(config, ranks)
        self.micro_batches = config.train.accumulation
        self.skips_spikes = config.train.spikes.skip
        self.clip_norm = optimizer.clip_norm
        self.hyper_dense = Hyper(optimizer, optimizer.eps_dense)
        self.hyper_experts = Hyper(optimizer, optimizer.eps_experts)
        self.hyper_rows, self.rate_rows = Hyper(optimizer, optimizer.eps_rows), optimizer.rate_rows
        self.worker_update = update_by_worker(config, network, store)
        self._expert_grads: tuple[Tensor, ...] = ()

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
        order_GT,
        inverse_GT,
        offsets_GA1,
        e_GTH,
        active_A,
        used_A1,
        limits_D=None,
        blocks_MD=None,
        experts=(),
    ):
        """Take a step on the fields of `StepArrays` and `SpikeLimits`, as plain tensors and tuples (data/batches.py). Return three
        tuples: the first six fields of StepResult, the gradients of experts that a worker reads, and the last two fields.

        lr: learning rate. experts: `WorkerUpdate.experts`; () without a worker. Plans and experts are tuples over segments.
        active_A: experts of all micro-batches. offsets_GA1: their tokens in each micro-batch. used_A1: their tokens in all of them.
        """
        scale = self.scale.value * 1.0  # a copy: the parameter is updated below
        experts = experts if experts else self.store.fetch(active_A)
        block_loss: tuple = ()
        expert_grads: tuple = ()
        row_grads: tuple = ()
        dense_grads: tuple = ()
        for g in range(self.micro_batches):  # unrolled when the graph is compiled: its conditions are no part of it
            # only data dependencies order a graph: micro-batches with collectives are chained, so that ranks agree on the order
            (_, loss_M), grads = self.loss_and_grads(
                ops.depend(scale, dense_grads) if g > 0 and self.reduce.chained else scale,
                rows_GBS[g],
                positions_GBS[g],
                documents_GBS[g],
                slots_GM[g],
                labels_GBS[g],
                weights_GBS[g],
                draws_GB4[g],
                of_micro_batch(order_GT, g),
                of_micro_batch(inverse_GT, g),
                of_micro_batch(offsets_GA1, g),
                e_GTH[g] if self.has_rows else (),
                experts,
            )
            rows_grad, experts_grad, dense_grad = self.split_gradients(grads)
            row_grads += (rows_grad,)
            block_loss += (loss_M,)
            dense_grads = dense_grad if g == 0 else add_gradients(dense_grads, dense_grad)
            experts_grad = self.learning_gradients(experts_grad)
            expert_grads = experts_grad if g == 0 else add_segments(expert_grads, experts_grad)
        dense_grads, expert_grads, squares, squares_dense, squares_experts = self.reduce(dense_grads, expert_grads)
        # `applied` is a number, not a branch: every step runs the same operators, and with 0.0 Adam leaves its arrays unchanged
        norm = ops.sqrt(squares) / scale
        has_finite_norm = is_finite(norm)
        has_no_spike = self.has_no_spike(block_loss, squares, limits_D, blocks_MD) if self.skips_spikes else 1.0
        applied = has_finite_norm * has_no_spike
        grad_scale = gradient_factor(norm, scale, self.clip_norm)
        updates: tuple = ()
        hyper_dense = self.hyper_dense(lr, grad_scale, applied)
        if self.sparse:
            hyper = self.hyper_experts(lr, grad_scale, applied)
            if self.worker_update is None:
                updates = (self.store.update(expert_grads, active_A, used_A1, hyper),)
            else:
                updates = self.worker_update.update(expert_grads, active_A, used_A1, hyper)
                hyper_dense = ops.depend(hyper_dense, updates)  # the worker begins before Adam of the dense parameters
        updates = (updates, self.dense.update(dense_grads, hyper_dense))
        # a spike does not change the scale, unless its gradients are not finite
        scale_update = self.scale.update(has_finite_norm, 1.0 - has_finite_norm * (1.0 - has_no_spike))
        norms = (ops.sqrt(squares_dense) / scale, ops.sqrt(squares_experts) / scale)
        # the graph returns no tensor before all updates are done
        result = ops.depend((block_loss, norm, applied, scale, *norms), (updates, scale_update))
        row_update = (row_grads, self.hyper_rows(lr * self.rate_rows, grad_scale, applied)) if self.learns_rows else ()
        return result, expert_grads if self.worker_update is not None else (), row_update

    def take(
        self,
        rate: float,
        arrays: StepArrays,
        limits: SpikeLimits | None = None,
    ) -> StepResult:
        """Run one step. A worker goes on with the update of the experts after the return. rate: learning rate. limits: loss limits
        above which the step updates nothing; None: no limits."""
        inputs: tuple = (*arrays, *(limits or SpikeLimits()))
        if self.worker_update is not None:
            self.worker_update.register([active.asnumpy() for active in arrays.active_A])
            inputs += (self.worker_update.experts,)
        with self.store.step_guard():
            # an attribute keeps the gradients alive: the worker reads them until the next step has waited for it
            result, self._expert_grads, row_update = self(Tensor(rate, ms.float32), *inputs)
        return StepResult(*result, *row_update)

    def split_gradients(self, grads):
        """Return the gradients of rows, of experts, and of dense parameters, () for those that do not learn. grads: the gradients
        that `loss_and_grads` returns, whose form depends on what learns."""
        if self.learning_input is None:  # neither rows nor experts are inputs
            return (), (), grads
        input_grads, dense_grads = grads if self.learns_dense else (grads, ())
        if self.learns_rows and self.sparse:
            return input_grads[0], input_grads[1], dense_grads
        if self.learns_rows:
            return input_grads, (), dense_grads
        return (), input_grads, dense_grads

    def learning_gradients(self, grads):
        """Return the gradients of experts, () for segments that do not learn. The graph then does not compute the unread ones."""
        learning: tuple = ()
        for n in range(len(self.learns)):
            learning += (grads[n] if self.learns[n] else (),)
        return learning

    def has_no_spike(self, block_loss, squares, limits_D, blocks_MD):
        """Return 1.0 if no domain's loss over the whole batch is above its limit, else 0.0; the same on all ranks.

        block_loss: block losses [M] of each micro-batch. squares: result of an earlier sum over ranks, which this sum must follow.
        limits_D, blocks_MD: as in `SpikeLimits`.
        """
        loss_M = block_loss[0]
        for g in range(1, self.micro_batches):
            loss_M = loss_M + block_loss[g]
        loss_D = self.reduce.over_ranks(ops.ReduceSum()(ops.reshape(loss_M, (-1, 1)) * blocks_MD, 0), squares)
        return ops.ReduceMin()(ops.cast(loss_D <= limits_D, ms.float32), 0)  # a comparison with NaN is false


def of_micro_batch(arrays, g):
    """Return a tuple over segments, the arrays of micro-batch g. arrays: an array [G, …] for each segment."""
    micro_batch_arrays: tuple = ()
    for array in arrays:
        micro_batch_arrays += (array[g],)
    return micro_batch_arrays


def add_gradients(left, right):
    """Return the sums of two tuples of gradients, tensor by tensor."""
    sums: tuple = ()
    for i in range(len(left)):
        sums += (left[i] + right[i],)
    return sums


def add_segments(left, right):
    """Return the sums of the gradients of two micro-batches, segment by segment."""
    sums: tuple = ()
    for n in range(len(left)):
        sums += (add_gradients(left[n], right[n]),)
    return sums
