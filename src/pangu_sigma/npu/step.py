"""Training step on Ascend ranks, one graph under MindSpore's auto-parallel.

    GradientAccumulation   loss and gradients of every micro-batch                   micro_batches.py, model/, sharding.py
      host → device        in it, the weights of each segment's active experts       active_experts.py, ascend_ops/adam_worker.py
    SumOverGroups          gradients of common experts, of which each group has a copy   active_experts.py
    OverflowCheck          global norm, overflow                                     overflow.py
    Update                 Adam of the dense parameters, loss scale                  here, device_adam.py
      → host               the gradients of experts: a worker updates those that had tokens   ecss/worker.py

It differs from `training/step.py` where auto-parallel needs it. Auto-parallel shards the parameters that the network multiplies
with, and nothing outside the network (norm, Adam), where every tensor is this rank's own. With stages it removes from the whole
graph every operator that touches a parameter of another stage, so nothing outside the network may read one. Nothing that the
network reads may be written before it in the step (README.md).

No cell here prefixes the names of its parameters with its own (`auto_prefix=False`): checkpoints, accumulators and the plan use the
names that they are declared with.

Shape suffixes: N segments of all RRE layers, G micro-batches, M blocks; B, S and T as in training/step.py, of all ranks of a stage.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch
from pangu_sigma.ecss.store import HostStore, array_specs
from pangu_sigma.ecss.worker import WorkerUpdate
from pangu_sigma.model.declare import as_tensor
from pangu_sigma.model.dense_ffn import MatMulFFN
from pangu_sigma.model.pangu_sigma import NextTokenLoss, PanGuSigma
from pangu_sigma.npu.active_experts import ActiveExperts, FetchExperts, RankTier, SumOverGroups
from pangu_sigma.npu.device_adam import DeviceAdam
from pangu_sigma.npu.dropless import dropless_experts
from pangu_sigma.npu.exchange import compacted_experts
from pangu_sigma.npu.inputs import StepSettings, inputs_of
from pangu_sigma.npu.micro_batches import GradientAccumulation
from pangu_sigma.npu.overflow import OverflowCheck
from pangu_sigma.npu.row_counts import dispatch_layout, gather_operator
from pangu_sigma.npu.sharding import apply_strategies, parameters_of_stage, received_by_stage
from pangu_sigma.npu.supported import check_ascend
from pangu_sigma.optimizer.update import Hyper, LossScale, gradient_factor
from pangu_sigma.ranks.connect import Groups
from pangu_sigma.ranks.layout import Layout, active_entries
from pangu_sigma.ranks.reduce import split_segments
from pangu_sigma.rre.experts import Experts
from pangu_sigma.sections import Activation, Segment


class AscendStep(nn.Cell):
    """Training step of one Ascend rank: forward pass, backward pass and update. Call `prepare` before each step: it writes the
    settings of the step. Raises ConfigError for the settings that supported.py lists."""

    def __init__(self, config: Config, rank: int = 0):
        """rank: the rank that takes the step; its stage and its experts follow from it."""
        super().__init__(auto_prefix=False)
        check_ascend(config)
        self.config, self.rank, self.tier = config, rank, RankTier()
        stage = Layout(config.parallel).coordinates(rank).stage
        self.store = HostStore(_with_own_columns(config), self.tier, rank)
        segments = [experts.segment for experts in self.store.segments]
        self.settings, self.has_rows = StepSettings(segments), bool(config.model.rows)
        # the worker copies gradients, because MindSpore may reuse their memory as soon as the worker's operator has returned
        self.worker_update = WorkerUpdate(self.store, copies_gradients=True)
        network = _network(config, rank)
        fetch = FetchExperts(config, self.store, self.settings, self.worker_update.worker)
        self.network = ActiveExperts(config, NextTokenLoss(network), fetch, [segment.number for segment in segments])
        self.scale, self.one = LossScale(config), Tensor([1.0], ms.float32)
        self.copy_scale()
        apply_strategies(self.network, config, stage)
        dense = parameters_of_stage(network, config, stage)
        self.dense = DeviceAdam(config, dense)
        # parameters of auto-parallel, in one list; `Update` splits it again
        weights = [*dense, *self.network.own_parameters()]
        self.accumulate = GradientAccumulation(self.network, weights, received_by_stage(network, config, stage), config)
        self.sum_common = SumOverGroups(weights, Groups(Layout(config.parallel), rank))
        self.check = OverflowCheck(weights, config.parallel)
        self.update = Update(config, self.dense, self.worker_update, self.scale, self.settings)

    def construct(self, rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS, *others):
        """Return (loss of each block of the rank, norm, applied, scale), as `StepResult` of training/step.py; of a model with rows
        also the gradient of the rows of all tokens, and the hyperparameters of their update.

        The inputs hold all micro-batches, concatenated along the first axis; others: see `inputs_of`. Losses are summed over
        micro-batches, and zero on the ranks of all stages but the last."""
        scale = self.scale.value * 1.0  # a copy: the parameter is updated below
        batch = (rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS)
        # foreign_grads: gradients of another stage's weights
        scaled_loss_M, grads, foreign_grads, row_grads = self.accumulate(*batch, *others)
        grads = self.sum_common(grads)
        norm, finite = self.check(grads, scale, foreign_grads)
        applied, update_results, next_scale, hyper_rows = self.update(grads, norm, finite, scale)
        ops.assign(self.network.scale, self.one * next_scale)
        # accumulators are cleared after all their readers: the updates, and the gradients that are sent to another stage
        clear_result = self.accumulate.clear(ops.depend(applied, (update_results, foreign_grads)))
        result = (scaled_loss_M / scale, norm, applied, scale, *((row_grads, hyper_rows) if self.has_rows else ()))
        return ops.depend(result, clear_result)

    def copy_scale(self) -> None:
        """Copy the loss scale to the network's parameter. Each step does so at its end, so only a restore needs this call."""
        self.network.scale.set_data(Tensor([float(self.scale.value.asnumpy())], ms.float32))

    def take(
        self, rate: float, batch: Batch, e_GTH: np.ndarray | tuple[()] = (), learns: float = 1.0
    ) -> tuple[Tensor, ...]:
        """Run one step on the rank's share of a batch, and return the result of `construct`.

        rate: learning rate. e_GTH: rows of the batch's tokens (`model.rows`), () without rows. learns: 1.0, or 0.0 to update
        nothing."""
        self.prepare(rate, batch, learns)
        with self.store.step_guard():
            result = self(*map(as_tensor, inputs_of(batch, self.config, e_GTH)))
        if not self.config.ecss.by_worker(npu=True):
            self.store.settle()
        return result

    def block_losses(self, batch: Batch) -> np.ndarray:
        """Return the weighted loss of each block (sequences of one domain) of the rank. The training graph runs without updating.

        A graph for losses alone would need another compilation, and auto-parallel would shard its operators outside the network.
        """
        return self.take(0.0, batch, self.store.rows_of(batch.own_row_keys), learns=0.0)[0].asnumpy()

    def prepare(self, rate: float, batch: Batch, learns: float = 1.0) -> None:
        """Write the settings of the next step, and tell the worker where the experts' arrays are. rate: learning rate. batch: the
        rank's share. learns: 1.0, or 0.0 to update nothing."""
        self.settings.write(rate, batch, learns)
        self.worker_update.register()

    def fill(self, seed: int) -> None:
        """Draw the experts' initial values. They do not depend on the number of stages, groups and expert ranks.

        seed: seed of the run. Only several tensor ranks read it; with one, MindSpore's generator goes on from this seed by itself.
        """
        parallel = self.config.parallel
        if parallel.tensor > 1:  # each tensor rank draws its own columns
            ms.set_seed(seed + 1 + Layout(parallel).coordinates(self.rank).tensor)
        # values are drawn for all layers, as if there were one stage, so stages do not matter
        one_stage = parallel.model_copy(update={"stages": 1})
        config = _with_own_columns(self.config.model_copy(update={"parallel": one_stage}))
        self.tier.fill(array_specs(config, self.rank % one_stage.ranks))


class Update(nn.Cell):
    """Optimizer update of an Ascend rank: Adam of its dense parameters and its experts, and the loss scale."""

    def __init__(
        self, config: Config, dense: DeviceAdam, worker_update: WorkerUpdate, scale: LossScale, settings: StepSettings
    ):
        super().__init__(auto_prefix=False)
        optimizer = config.train.optimizer
        self.dense, self.worker_update, self.scale, self.settings = dense, worker_update, scale, settings
        self.dense_count = len(dense.weights)
        self.sizes = tuple(len(experts.weights) for experts in worker_update.store.segments)
        self.clip_norm = optimizer.clip_norm
        self.hyper_experts = Hyper(optimizer, optimizer.eps_experts)
        self.hyper_rows, self.rate_rows = Hyper(optimizer, optimizer.eps_rows), optimizer.rate_rows
        self.has_accumulators = config.train.accumulation > 1

    def construct(self, grads, norm, finite, scale):
        """Return (1.0 if the update was applied, else 0.0; tensors that the updates compute, to wait for; the loss scale of the
        next step; the hyperparameters of the update of rows).

        grads: gradients of the dense weights, then of the active experts, scaled by the loss scale. norm: global gradient norm,
        without the loss scale. finite: 1.0 if no gradient overflowed, else 0.0. scale: the loss scale."""
        lr, learns = self.settings.rate * 1.0, self.settings.learns * 1.0
        applied = finite * learns
        grad_scale = gradient_factor(norm, scale, self.clip_norm)
        update_results = self.dense.update(grads[: self.dense_count], lr, grad_scale, applied)
        if self.sizes:
            expert_grads: tuple = ()
            for i in range(self.dense_count, len(grads)):
                # a copy of an accumulator: MindSpore would copy the accumulator itself to the host at each write
                expert_grads += (grads[i] * 1.0 if self.has_accumulators else grads[i],)
            hyper = self.hyper_experts(lr, grad_scale, applied)
            grads_of_segments = split_segments(expert_grads, self.sizes)
            start = self.worker_update.update(grads_of_segments, self.settings.active_rows, self.settings.used, hyper)
            update_results = (update_results, start)
        next_scale = self.scale.update(finite, learns)
        hyper_rows = self.hyper_rows(lr * self.rate_rows, grad_scale, applied)
        return applied, (update_results, next_scale), next_scale, hyper_rows


def _network(config: Config, rank: int) -> PanGuSigma:
    """Build the network, in the shapes of all ranks of a stage together, from operators that auto-parallel supports. rank: rank of
    this process, whose communication groups the dropless layout needs."""
    groups = Groups(Layout(config.parallel), rank)

    def expert_cells(activation: Activation, kind: Segment) -> Experts:
        if dispatch_layout(config) == "dropless":
            return dropless_experts(groups, config.model.hidden, activation, gather_operator(config) == "cann")
        return compacted_experts(config.parallel, active_entries(config, kind), activation)

    dtype = getattr(ms, config.train.compute_dtype)
    return PanGuSigma(config.model, config.slots, dtype, routed=expert_cells, dense=MatMulFFN)


def _with_own_columns(config: Config) -> Config:
    """Return the configuration with the FFN width of one tensor rank, which stores only its own columns of every expert."""
    model = config.model.model_copy(update={"ffn": config.model.ffn // config.parallel.tensor})
    return config.model_copy(update={"model": model})
