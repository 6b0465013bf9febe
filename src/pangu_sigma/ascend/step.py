"""The training step on Ascend ranks, one graph under MindSpore's auto-parallel.

    host   look up the active experts of this rank                      ascend_ops/fetch.py
      → device   into the buffers that the network multiplies with      active_experts.py
      → loss and gradients of every micro-batch                         micro_batches.py; model/, model/loss.py, cut by sharding.py
      → global norm, overflow, loss scale                               here, overflow.py
      → Adam of the dense parameters                                    device_adam.py
      → host     Adam of the experts that had tokens                    ascend_ops/adam.py

What differs from `train/step.py` is what auto-parallel asks for. It cuts the parameters that the network multiplies with. What lies
outside the network (fetch, norm, Adam) it leaves alone, and there every tensor is the part of this rank: a host store is therefore
declared with the shape that its rank holds. With stages it removes from the whole graph what touches a parameter of another stage,
so nothing outside the network may read one.

Shape suffixes: N RRE layers, G micro-batches, M blocks; B, S and T as in train/step.py, of all ranks of a stage.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from ascend_ops.fetch import FetchRows
from pangu_sigma.ascend.active_experts import ActiveExperts, RankTier
from pangu_sigma.ascend.device_adam import DeviceAdam
from pangu_sigma.ascend.exchange import ascend_exchange
from pangu_sigma.ascend.inputs import inputs_of
from pangu_sigma.ascend.micro_batches import MicroBatches, accumulators
from pangu_sigma.ascend.overflow import OverflowFlag, saturates
from pangu_sigma.ascend.sharding import apply_strategies, parameters_of_stage, received_by_stage
from pangu_sigma.ascend.supported import check_ascend
from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch
from pangu_sigma.ecss.store import HostStore, array_specs
from pangu_sigma.model.declare import as_tensor
from pangu_sigma.model.dense_ffn import MatMulFFN
from pangu_sigma.model.loss import NextTokenLoss
from pangu_sigma.model.pangu_sigma import FFN_TENSORS, PanGuSigma
from pangu_sigma.optimizer.clip import is_finite, update_factor
from pangu_sigma.optimizer.hyper import Hyper
from pangu_sigma.optimizer.loss_scale import LossScale
from pangu_sigma.parallel.layout import Layout, active_entries
from pangu_sigma.rre.experts import PaddedFFN
from pangu_sigma.rre.travel import exchanged_experts


class AscendStep(nn.Cell):
    """Forward, backward and update of one rank.

    construct(rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS, *plans)
        -> (loss of each block of the rank, norm, applied, scale), as `StepResult` of train/step.py
        The inputs hold all micro-batches, one behind the other along the first axis (`inputs_of`); losses are sums over them, and
        zero on the ranks of all stages but the last. What else changes from step to step, `tell` says.
    Raises ConfigError for what supported.py lists.
    """

    def __init__(self, config: Config, rank: int = 0):
        """rank: which experts it stores, and of which stage it is."""
        super().__init__(auto_prefix=False)  # names of accumulators follow those of weights
        check_ascend(config)
        parallel, optimizer, places = config.parallel, config.train.optimizer, active_entries(config)
        self.config = config
        self.place = Layout(parallel).coordinates(rank)
        network = PanGuSigma(
            config.model,
            config.slots,
            getattr(ms, config.train.compute_dtype),
            routed=lambda: exchanged_experts(ascend_exchange(parallel, places), PaddedFFN()),
            dense=MatMulFFN,
        )
        self.network = ActiveExperts(config, NextTokenLoss(network))
        apply_strategies(self.network, config)
        dense = parameters_of_stage(network, config, self.place.stage)
        self.dense = DeviceAdam(config, dense)
        self.rank, self.tier = rank, RankTier()
        self.store = HostStore(_columns(config), self.tier, rank)
        self.fetch = FetchRows(len(FFN_TENSORS))
        self.active = ParameterTuple(self.network.of_layers(self.store.numbers))
        self.active_rows = _host_table("active_rows", self.store.layers, places)
        self.used = _host_table("used", self.store.layers, places + 1)
        self.rate = Parameter(Tensor(0.0, ms.float32), name="rate", requires_grad=False)
        self.learns = Parameter(Tensor(1.0, ms.float32), name="learns", requires_grad=False)
        weights = ParameterTuple([*dense, *self.active, *received_by_stage(network, config, self.place.stage)])
        passes = config.train.accumulation
        forward = self.network if passes == 1 else MicroBatches(self.network, passes, parallel)
        self.loss_and_grads = ms.value_and_grad(forward, None, weights=weights)
        self.accumulators = None if passes == 1 else accumulators(weights)
        self.shares = tuple(1.0 / p.replicas for p in (*dense, *self.active))
        self.map, self.sum = ops.HyperMap(), ops.AddN()
        self.dense_count = len(dense)
        self.all_reduce = ops.AllReduce() if parallel.ranks > 1 else None
        self.overflow = OverflowFlag() if saturates() else None
        self.scale = LossScale(config)
        self.one = Tensor([1.0], ms.float32)
        self.clip_norm = optimizer.clip_norm
        self.hyper_experts = Hyper(optimizer, optimizer.eps_experts)

    def construct(self, rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS, *plans):
        lr, scale = self.rate * 1.0, self.scale.value * 1.0  # copies: a parameter may be updated below
        self.bring()
        ops.assign(self.network.scale, self.one * scale)
        scaled_M, grads = self.loss_and_grads(
            rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS, *plans
        )
        own = len(self.shares)
        sent_back, grads = grads[own:], grads[:own]
        norm, finite = self.norm_and_verdict(grads, scale, sent_back)
        learns = self.learns * 1.0
        applied = finite * learns
        grad_scale = update_factor(norm, scale, self.clip_norm)
        updated = self.dense.update(grads[: self.dense_count], lr, grad_scale, applied)
        if self.store.layers:
            hyper = self.hyper_experts(lr, grad_scale, applied)
            experts = self.store.update(grads[self.dense_count :], self.active_rows, self.used, hyper)
            updated = (updated, experts)
        done = (updated, self.scale.update(finite, learns), sent_back)
        if self.accumulators is not None:
            done = self.map(ops.partial(_clear, ops.depend(applied, done)), self.accumulators)
        return ops.depend((scaled_M / scale, norm, applied, scale), done)

    def take(self, rate: float, batch: Batch) -> tuple[Tensor, ...]:
        """One step on a rank's share of a batch."""
        self.tell(rate, batch)
        return self(*map(as_tensor, inputs_of(batch, self.config)))

    def of(self, batch: Batch) -> np.ndarray:
        """Weighted loss of each block of the rank's share, by the same graph: gradients are computed, and nothing is updated.

        A graph for losses alone would have to be compiled, too, and auto-parallel would cut what it does outside the network.
        """
        self.tell(0.0, batch, learns=0.0)
        return self(*map(as_tensor, inputs_of(batch, self.config)))[0].asnumpy()

    def fill(self, seed: int) -> None:
        """Initial values of the experts, by a seed: the same for an expert on any number of stages, groups and expert ranks."""
        if self.config.parallel.tensor > 1:
            ms.set_seed(seed + 1 + self.place.tensor)  # each draws its own columns
        whole = self.config.parallel.model_copy(update={"stages": 1})
        config = _columns(self.config.model_copy(update={"parallel": whole}))
        self.tier.fill(array_specs(config, self.rank % whole.ranks))

    def tell(self, rate: float, batch: Batch, learns: float = 1.0) -> None:
        """The next step's learning rate, which of the rank's experts it uses, and the offsets of their tokens.

        learns: 0.0 to update nothing.
        Parameters and not inputs: auto-parallel wants every input of the step to be one of the network.
        """
        arrays = batch.arrays()
        self.rate.set_data(Tensor(rate, ms.float32))
        self.learns.set_data(Tensor(learns, ms.float32))
        for place, layer in enumerate(self.store.numbers):
            self.active_rows[place].set_data(Tensor(arrays.active_NA[layer]))
            self.used[place].set_data(Tensor(arrays.used_NA1[layer]))

    def bring(self):
        """Fill the device's buffers with the experts of this step."""
        for layer in range(self.store.layers):
            part = slice(layer * self.store.tensors, (layer + 1) * self.store.tensors)
            buffers = self.active[part]
            rows = self.fetch(self.store.weights[part], self.active_rows[layer], buffers)
            for i in range(len(buffers)):
                ops.assign(buffers[i], rows[i])

    def norm_and_verdict(self, grads, scale, sent_back):
        """Norm of all ranks' unscaled gradients, and 1.0 if all of them are numbers that did not overflow, else 0.0.

        What several ranks hold counts once. The flag is read after all that may raise it, and after the sum of the squares, so that
        all ranks come to the two sums in the same order.
        """
        squares = self.all_ranks(self.sum(self.map(_squares, grads, self.shares)))
        norm = ops.sqrt(squares) / scale
        applied = is_finite(norm)
        if self.overflow is not None:
            applied = applied * ops.cast(self.all_ranks(self.overflow((sent_back, squares))) < 0.5, ms.float32)
        return norm, applied

    def all_ranks(self, value):
        """Sum over ranks."""
        return value if self.all_reduce is None else self.all_reduce(value)


def _clear(after, total):
    return ops.assign(total, ops.depend(ops.zeros_like(total), after))


def _squares(grad, share):
    return ops.ReduceSum()(ops.square(ops.cast(grad, ms.float32))) * share


def _host_table(name: str, layers: int, entries: int) -> ParameterTuple:
    """int32 [entries] for each layer, which only host operators read."""
    zeros = np.zeros(entries, np.int32)
    return ParameterTuple([Parameter(Tensor(zeros), f"{name}.{i}", requires_grad=False) for i in range(layers)])


def _columns(config: Config) -> Config:
    """`config` as a tensor rank stores experts: its columns of every FFN."""
    part = config.model.model_copy(update={"ffn": config.model.ffn // config.parallel.tensor})
    return config.model_copy(update={"model": part})
