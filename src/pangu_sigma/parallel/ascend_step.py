"""The training step on Ascend ranks, one graph under MindSpore's auto-parallel.

    host   look up the active experts of this rank                      ascend_ops/fetch.py
      → device   into the buffers that the network multiplies with      parameters `active`
      → loss and gradients                                              model/, train/loss.py, cut by sharding.py
      → global norm, loss scale; Adam of the dense parameters           here
      → host     Adam of the experts that had tokens                    ascend_ops/adam.py

What differs from `train/step.py` is what auto-parallel asks for. It cuts the parameters that the network multiplies with, so the
active experts are parameters here and not arguments. What lies outside the network (fetch, norm, Adam) it leaves alone, and there
every tensor is the part of this rank: a host store is therefore declared with the shape that its rank holds.

Shape suffixes: N RRE layers, A active experts of all ranks, F ffn, H hidden; B, S, T and M as in train/step.py, of all ranks.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer

from ascend_ops.fetch import FetchRows
from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch
from pangu_sigma.ecss.store import HostStore
from pangu_sigma.ecss.tiers import ArraySpec, HostTier
from pangu_sigma.model.declare import Zero, as_tensor, decays
from pangu_sigma.model.experts import MatMulFFN, PaddedFFN
from pangu_sigma.model.pangu_sigma import FFN_TENSORS, PanGuSigma, ffn_tensors
from pangu_sigma.parallel.dispatch import exchanged_experts
from pangu_sigma.parallel.exchange import ascend_exchange
from pangu_sigma.parallel.layout import active_places, capacity
from pangu_sigma.parallel.sharding import EXPERT_TENSORS, STRATEGIES, cut, shard
from pangu_sigma.parallel.supported import check_ascend
from pangu_sigma.train.loss import NextTokenLoss
from pangu_sigma.train.step import Hyper, LossScale


class RankTier(HostTier):
    """Host memory that MindSpore takes when the graph is loaded: zeros, until `fill`. To compile, little is needed."""

    def __init__(self) -> None:
        self._made: list[tuple[ArraySpec, Parameter]] = []

    def parameter(self, spec: ArraySpec) -> Parameter:
        zeros = initializer(Zero(), spec.shape, getattr(ms, spec.dtype))
        parameter = Parameter(zeros, name=spec.key, requires_grad=False)
        parameter.weight_decays = spec.decay
        self._made.append((spec, parameter))
        return parameter

    def fill(self) -> None:
        """Initial values, which are the same for an expert on any number of ranks."""
        for spec, parameter in self._made:
            array = np.zeros(spec.shape, spec.dtype)
            for _ in spec.fill(array):
                pass
            parameter.set_data(Tensor.from_numpy(array))


class ActiveExperts(nn.Cell):
    """The network's loss with the active experts of all ranks as parameters, filled anew in every step."""

    def __init__(self, config: Config, loss: NextTokenLoss):
        super().__init__()
        self.loss = loss
        parallel, model = config.parallel, config.model
        dtype = getattr(ms, config.train.compute_dtype)
        count = parallel.groups * parallel.expert * active_places(config)
        parameters = []
        for layer in range(model.rre_layers):
            for name, shape, _, _ in ffn_tensors(model):
                whole = (count, *shape) if len(shape) == 2 else (count, 1, *shape)  # as PaddedFFN takes them
                parameter = Parameter(initializer(Zero(), whole, dtype), name=f"active.{layer}.{name}")
                operator, index = EXPERT_TENSORS[name]
                cut(parameter, STRATEGIES[PaddedFFN][operator][index], parallel, divide=False)
                parameters.append(parameter)
        self.active = ParameterTuple(parameters)

    def construct(self, scale, rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS, *plans):
        """plans: order of every RRE layer, then inverse of every RRE layer."""
        layers = len(plans) // 2
        order, inverse = plans[:layers], plans[layers:]
        experts: tuple = ()
        for i in range(len(self.active)):
            experts += (self.active[i],)
        return self.loss(
            scale,
            rows_BS,
            positions_BS,
            documents_BS,
            slots_M,
            labels_BS,
            weights_BS,
            order,
            inverse,
            inverse,
            *experts,
        )


class DeviceAdam(nn.Cell):
    """AdamW of the dense parameters where they are, each rank its part. The rule of ascend_ops/adam.py.

    MindSpore's fused operator has no bias correction; corrected rate, ε and decay give the same update:
    lr · c · m / (√v + ε·√(1 − β2ᵗ)) with c = √(1 − β2ᵗ) / (1 − β1ᵗ).
    """

    def __init__(self, config: Config, parameters: list[Parameter]):
        super().__init__()
        options = config.train.optimizer
        self.weights = ParameterTuple(parameters)
        self.moments, self.variances = self.weights.clone("moment", "zeros"), self.weights.clone("variance", "zeros")
        self.step = Parameter(
            Tensor(np.zeros(1, np.int32)), name="dense.step"
        )  # as `DenseAdam` of train/step.py has it
        self.beta1, self.beta2, self.eps = options.beta1, options.beta2, options.eps_dense
        self.decay = tuple(options.weight_decay * decays(p) for p in parameters)
        self.adam = ops.AdamWeightDecay()
        self.map = ops.HyperMap()  # a loop would be hundreds of nested calls

    def update(self, grads, lr, grad_scale, applied):
        counted = ops.assign(self.step, self.step + ops.cast(applied, ms.int32))
        step = ops.reshape(ops.cast(counted, ms.float32), ())
        power1, power2 = ops.pow(self.beta1, ops.maximum(step, 1.0)), ops.pow(self.beta2, ops.maximum(step, 1.0))
        unbias = ops.sqrt(1.0 - power2)
        correction = unbias / (1.0 - power1)
        rate, eps = lr * correction * applied, self.eps * unbias
        beta1 = 1.0 - (1.0 - self.beta1) * applied  # a step that is not applied leaves the moments as they are
        beta2 = 1.0 - (1.0 - self.beta2) * applied
        update = ops.partial(_adam, self.adam, rate, beta1, beta2, eps, correction, grad_scale, applied < 0.5)
        return counted, self.map(update, self.weights, self.moments, self.variances, self.decay, grads)


class AscendStep(nn.Cell):
    """Forward, backward and update of one rank.

    construct(lr, rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS, *plans)
        -> (loss of each block of the rank, norm, applied, scale), as `StepResult` of train/step.py
    Raises ConfigError for what supported.py lists.
    """

    def __init__(self, config: Config, rank: int = 0):
        """rank: which experts it stores."""
        super().__init__()
        check_ascend(config)
        parallel, model, optimizer = config.parallel, config.model, config.train.optimizer
        places = active_places(config)
        network = PanGuSigma(
            model,
            config.slots,
            getattr(ms, config.train.compute_dtype),
            routed=lambda: exchanged_experts(ascend_exchange(parallel, places), PaddedFFN()),
            dense=MatMulFFN,
        )
        self.network = ActiveExperts(config, NextTokenLoss(network))
        shard(self.network.loss, parallel)
        dense = list(network.trainable_params())
        self.dense = DeviceAdam(config, dense)
        self.tier = RankTier()
        self.store = HostStore(_columns(config), self.tier, rank)
        self.fetch = FetchRows(len(FFN_TENSORS))
        self.active_rows = _host_table("active_rows", model.rre_layers, places)
        self.used = _host_table("used", model.rre_layers, places + 1)
        weights = ParameterTuple([*dense, *self.network.active])
        self.loss_and_grads = ms.value_and_grad(self.network, None, weights=weights, has_aux=True)
        self.shares = tuple(1.0 / p.replicas for p in weights)
        self.map, self.sum = ops.HyperMap(), ops.AddN()
        self.dense_count = len(dense)
        self.tensor_ranks, self.tensor_rank = parallel.tensor, rank % parallel.tensor
        self.all_reduce = ops.AllReduce() if parallel.ranks > 1 else None
        self.scale = LossScale(config)
        self.clip_norm = optimizer.clip_norm
        self.hyper_experts = Hyper(optimizer, optimizer.eps_experts)

    def construct(
        self,
        lr,
        rows_BS,
        positions_BS,
        documents_BS,
        slots_M,
        labels_BS,
        weights_BS,
        *plans,
    ):
        scale = self.scale.value * 1.0  # a copy: the parameter is updated below
        scale = ops.depend(scale, self.bring())
        (_, block_loss_M), grads = self.loss_and_grads(
            scale, rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS, *plans
        )
        squares = self.square_sum(grads)
        norm = ops.sqrt(squares if self.all_reduce is None else self.all_reduce(squares)) / scale
        applied = ops.cast(ops.isfinite(norm), ms.float32)
        grad_scale = ops.minimum(self.clip_norm / (norm + 1e-12), Tensor(1.0, ms.float32)) / scale
        updated = self.dense.update(grads[: self.dense_count], lr, grad_scale, applied)
        hyper = self.hyper_experts(lr, grad_scale, applied)
        experts = self.store.update(grads[self.dense_count :], self.active_rows, self.used, hyper)
        rescaled = self.scale.update(applied)
        return ops.depend((block_loss_M, norm, applied, scale), (updated, experts, rescaled))

    def take(self, rate: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """One step on a rank's share of a batch."""
        self.tell(*batch.arrays()[-2:])
        return self(rate, *map(as_tensor, arrays_of(batch)))

    def fill(self, seed: int) -> None:
        """Initial values of the experts, by a seed: the same for an expert on any number of groups and expert ranks."""
        if self.tensor_ranks > 1:
            ms.set_seed(seed + 1 + self.tensor_rank)  # each draws its own columns
        self.tier.fill()

    def tell(self, active_NA: np.ndarray, used_NA1: np.ndarray) -> None:
        """Which of the rank's experts the next step uses, and the offsets of their tokens, as `TrainStep` takes them.

        Parameters and not inputs: auto-parallel wants every input of the step to be one of the network.
        """
        for layer in range(len(active_NA)):
            self.active_rows[layer].set_data(Tensor(active_NA[layer]))
            self.used[layer].set_data(Tensor(used_NA1[layer]))

    def bring(self):
        """Fill the device's buffers with the experts of this step."""
        done: tuple = ()
        for layer in range(self.store.layers):
            part = slice(layer * self.store.tensors, (layer + 1) * self.store.tensors)
            buffers = self.network.active[part]
            rows = self.fetch(self.store.weights[part], self.active_rows[layer], buffers)
            for i in range(len(buffers)):
                done += (ops.assign(buffers[i], rows[i]),)
        return done

    def square_sum(self, grads):
        """This rank's share of the sum of all squares: what several ranks hold counts once."""
        return self.sum(self.map(_squares, grads, self.shares))


class AscendEvaluation(nn.Cell):
    """Losses of a batch by the network of a step, without touching it. construct(one, inputs of the step after the rate) -> [M]."""

    def __init__(self, step: AscendStep):
        super().__init__()
        self.step = step

    def construct(self, one, *batch):
        one = ops.depend(one, self.step.bring())
        return self.step.network(one, *batch)[1]

    def of(self, batch: Batch) -> np.ndarray:
        """Weighted loss of each block of the rank's share."""
        self.step.tell(*batch.arrays()[-2:])
        return self(Tensor(1.0, ms.float32), *map(as_tensor, arrays_of(batch))).asnumpy()


def _squares(grad, share):
    return ops.ReduceSum()(ops.square(ops.cast(grad, ms.float32))) * share


def _adam(adam, rate, beta1, beta2, eps, correction, grad_scale, skipped, weight, moment, variance, decay, grad):
    grad = ops.masked_fill(grad * grad_scale, skipped, 0.0)
    return adam(weight, moment, variance, rate, beta1, beta2, eps, decay / correction, grad)


def _host_table(name: str, layers: int, entries: int) -> ParameterTuple:
    """int32 [entries] for each layer, which only host operators read."""
    zeros = np.zeros(entries, np.int32)
    return ParameterTuple([Parameter(Tensor(zeros), f"{name}.{i}", requires_grad=False) for i in range(layers)])


def _columns(config: Config) -> Config:
    """`config` as a tensor rank stores experts: its columns of every FFN."""
    part = config.model.model_copy(update={"ffn": config.model.ffn // config.parallel.tensor})
    return config.model_copy(update={"model": part})


def input_strategies(config: Config) -> tuple[tuple[int, ...], ...]:
    """How the inputs of the step are cut over ranks: by sequence, and plans by rank."""
    ranks = config.parallel.ranks // config.parallel.tensor
    by_row, by_rank = (ranks, 1), (ranks,)
    batch = (by_row, by_row, by_row, by_rank, by_row, by_row)
    return ((), *batch, *[by_rank] * (2 * config.model.rre_layers))


def step_inputs(config: Config) -> tuple[Tensor, ...]:
    """Inputs of one rank, all zeros, in their shapes: to compile the step before there are data."""
    parallel, model = config.parallel, config.model
    ranks = parallel.ranks // parallel.tensor
    sequences, blocks = config.train.batch_size // ranks, config.data.domains_per_step // parallel.groups
    tokens = sequences * model.seq_length
    ints = [(sequences, model.seq_length)] * 3 + [(blocks,), (sequences, model.seq_length)]
    rows = parallel.expert * active_places(config) * capacity(config)
    plans = [(rows,)] * model.rre_layers + [(tokens,)] * model.rre_layers

    def zeros(shape: tuple[int, ...]) -> Tensor:
        return Tensor(np.zeros(shape, np.int32))

    weights = Tensor(np.zeros((sequences, model.seq_length), np.float32))
    return (Tensor(0.0, ms.float32), *map(zeros, ints), weights, *map(zeros, plans))


def arrays_of(batch: Batch) -> tuple[np.ndarray, ...]:
    """Inputs of the step after the learning rate, of a rank's share of a batch of one pass in the all-to-all layout."""
    rows, positions, documents, slots, labels, weights, order, inverse, *_ = (array[0] for array in batch.arrays())
    return (rows, positions, documents, slots, labels, weights, *order, *inverse)
