"""Training step on Ascend ranks, one graph under MindSpore's auto-parallel.

    FetchExperts           host: look up the active experts of this rank             active_experts.py, ascend_ops/fetch.py
      → device             into the buffers that the network multiplies with
    GradientAccumulation   loss and gradients of every micro-batch                   micro_batches.py, model/, sharding.py
    SumOverGroups          gradients of common experts, of which each group has a copy   active_experts.py
    OverflowCheck          global norm, overflow                                     overflow.py
    Update                 Adam of the dense parameters, loss scale                  here, device_adam.py
      → host               Adam of the experts that had tokens                       ascend_ops/adam.py

It differs from `train/step.py` where auto-parallel needs it. Auto-parallel shards the parameters that the network multiplies with.
It shards nothing outside the network (fetch, norm, Adam), where every tensor is this rank's own: a host store is therefore declared
with the shape that its rank holds. With stages it removes from the whole graph every operator that touches a parameter of another
stage, so nothing outside the network may read one.

No cell here prefixes the names of its parameters with its own (`auto_prefix=False`): checkpoints, accumulators and the plan use the
names that they are declared with.

Shape suffixes: N segments of all RRE layers, G micro-batches, M blocks; B, S and T as in train/step.py, of all ranks of a stage.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from pangu_sigma.ascend.active_experts import ActiveExperts, FetchExperts, RankTier, SumOverGroups
from pangu_sigma.ascend.device_adam import DeviceAdam
from pangu_sigma.ascend.dropless import dropless_experts
from pangu_sigma.ascend.exchange import compacted_experts
from pangu_sigma.ascend.inputs import StepSettings, inputs_of
from pangu_sigma.ascend.micro_batches import GradientAccumulation
from pangu_sigma.ascend.overflow import OverflowCheck
from pangu_sigma.ascend.sharding import apply_strategies, parameters_of_stage, received_by_stage
from pangu_sigma.ascend.supported import check_ascend
from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch
from pangu_sigma.ecss.store import HostStore, array_specs
from pangu_sigma.model.declare import as_tensor
from pangu_sigma.model.dense_ffn import MatMulFFN
from pangu_sigma.model.loss import NextTokenLoss
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.optimizer.clip import gradient_factor
from pangu_sigma.optimizer.hyper import Hyper
from pangu_sigma.optimizer.loss_scale import LossScale
from pangu_sigma.parallel.connect import Groups
from pangu_sigma.parallel.layout import Layout, active_entries, dispatch_layout, gather_operator
from pangu_sigma.rre.experts import Experts
from pangu_sigma.sections import Activation, Segment


class AscendStep(nn.Cell):
    """Training step of one Ascend rank: forward pass, backward pass and update.
    construct(rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS, *plans)
        -> (loss of each block of the rank, norm, applied, scale), as `StepResult` of train/step.py
        The inputs hold all micro-batches, concatenated along the first axis (`inputs_of`). Losses are summed over micro-batches,
        and zero on the ranks of all stages but the last. `take` writes the settings of a step before.
    Raises ConfigError for the settings that supported.py lists.
    """

    def __init__(self, config: Config, rank: int = 0):
        """rank: the rank that takes the step; its stage and its experts follow from it."""
        super().__init__(auto_prefix=False)
        check_ascend(config)
        self.config, self.rank, self.tier = config, rank, RankTier()
        stage = Layout(config.parallel).coordinates(rank).stage
        network = _network(config, rank)
        self.network = ActiveExperts(config, NextTokenLoss(network))
        apply_strategies(self.network, config)
        dense = parameters_of_stage(network, config, stage)
        self.dense = DeviceAdam(config, dense)
        self.store = HostStore(_columns(config), self.tier, rank)
        self.scale = LossScale(config)
        self.settings = StepSettings(self.store.numbers, self.store.entries)
        active = self.network.of_segments(self.store.numbers)
        weights = [*dense, *active]  # all are parameters for auto-parallel, so in one list; `Update` splits it again
        self.bring = FetchExperts(self.store, self.settings, active)
        self.passes = GradientAccumulation(self.network, weights, received_by_stage(network, config, stage), config)
        self.sum_common = SumOverGroups(weights, Groups(Layout(config.parallel), rank))
        self.verdict = OverflowCheck(weights, config.parallel)
        self.update = Update(config, self.dense, self.store, self.scale, self.settings)

    def construct(self, rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS, *plans):
        scale = self.scale.value * 1.0  # a copy: the parameter is updated below
        self.bring()  # assigns parameters that the network reads: MindSpore keeps such statements in this order
        scaled_M, grads, sent_back = self.passes(
            scale, rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS, *plans
        )
        grads = self.sum_common(grads)
        norm, finite = self.verdict(grads, scale, sent_back)
        applied, updated = self.update(grads, norm, finite, scale)
        # accumulators are cleared after all readers: both updates, and the gradients that are sent to another stage
        done = self.passes.clear(ops.depend(applied, (updated, sent_back)))
        return ops.depend((scaled_M / scale, norm, applied, scale), done)

    def take(self, rate: float, batch: Batch) -> tuple[Tensor, ...]:
        """Run one step on the rank's share of a batch, and return the result of `construct`. rate: learning rate."""
        self.settings.write(rate, batch)
        return self(*map(as_tensor, inputs_of(batch, self.config)))

    def of(self, batch: Batch) -> np.ndarray:
        """Return the weighted loss of each block (sequences of one domain) of the rank. The training graph runs without updating.

        A graph for losses alone would need another compilation, and auto-parallel would shard its operators outside the network.
        """
        self.settings.write(0.0, batch, learns=0.0)
        return self(*map(as_tensor, inputs_of(batch, self.config)))[0].asnumpy()

    def fill(self, seed: int) -> None:
        """Draw the experts' initial values from a seed; they do not depend on the number of stages, groups and expert ranks."""
        parallel = self.config.parallel
        if parallel.tensor > 1:  # each tensor rank draws its own columns
            ms.set_seed(seed + 1 + Layout(parallel).coordinates(self.rank).tensor)
        whole = parallel.model_copy(update={"stages": 1})
        config = _columns(self.config.model_copy(update={"parallel": whole}))
        self.tier.fill(array_specs(config, self.rank % whole.ranks))


class Update(nn.Cell):
    """Optimizer update of an Ascend rank: Adam of its dense parameters and its experts, and the loss scale.
    construct(grads, norm, finite, scale) -> (1.0 if the update was applied, else 0.0; a value that is computed after all updates)
    norm: global gradient norm, without the loss scale. finite: 1.0 if no gradient overflowed, else 0.0. scale: the loss scale."""

    def __init__(self, config: Config, dense: DeviceAdam, store: HostStore, scale: LossScale, settings: StepSettings):
        super().__init__(auto_prefix=False)
        optimizer = config.train.optimizer
        self.dense, self.store, self.scale, self.settings = dense, store, scale, settings
        self.dense_count = len(dense.weights)
        self.clip_norm = optimizer.clip_norm
        self.hyper_experts = Hyper(optimizer, optimizer.eps_experts)

    def construct(self, grads, norm, finite, scale):
        lr, learns = self.settings.rate * 1.0, self.settings.learns * 1.0
        applied = finite * learns
        grad_scale = gradient_factor(norm, scale, self.clip_norm)
        updated = self.dense.update(grads[: self.dense_count], lr, grad_scale, applied)
        if self.store.segments:
            hyper = self.hyper_experts(lr, grad_scale, applied)
            active_rows, used = self.settings.active_rows, self.settings.used
            updated = (updated, self.store.update(grads[self.dense_count :], active_rows, used, hyper))
        return applied, (updated, self.scale.update(finite, learns))


def _network(config: Config, rank: int) -> PanGuSigma:
    """Build the network for all ranks of a stage together, from operators that auto-parallel supports. rank: this process."""
    groups = Groups(Layout(config.parallel), rank)

    def routed(activation: Activation, kind: Segment) -> Experts:
        if dispatch_layout(config, ascend=True) == "dropless":
            return dropless_experts(groups, config.model.hidden, activation, gather_operator(config) == "cann")
        return compacted_experts(config.parallel, active_entries(config, kind), activation)

    return PanGuSigma(
        config.model,
        config.slots,
        getattr(ms, config.train.compute_dtype),
        routed=routed,
        dense=MatMulFFN,
    )


def _columns(config: Config) -> Config:
    """Return the configuration with the FFN width of one tensor rank, which stores its columns of every expert."""
    model = config.model.model_copy(update={"ffn": config.model.ffn // config.parallel.tensor})
    return config.model_copy(update={"model": model})
