"""Learned gates as peers of RRE, in the product's own step and loop: Switch Transformer's (Fedus et al., 2021), and MoGE's.

The gate is linear, with a float32 softmax over all experts of the layer, whatever a token's domain. With one segment a token goes
to the most probable expert, as in Switch Transformer. With G segments of F / G inner units it goes to the most probable of each, as
in Huawei's Mixture of Grouped Experts (Pangu Pro MoE, arXiv 2505.21411, with K' = 1), so that the load is even over groups. An
expert's output is multiplied by its probability. For each layer the loss has 0.01 · K / G · Σ f_k · P_k besides, f the share of the
tokens and P the mean probability of expert k (Switch's equations 4 to 6). So a token has the active size that it has under RRE.
Unlike in Switch, no token is dropped (there is no capacity) and the gate's input has no noise; unlike in Pangu Pro MoE, there is no
shared expert; and the output bias is that of the first group's experts. Gates are drawn as all of our weights are.

The routing plan that the batch brings is not read: the graph makes its own. The balance loss is not in the losses that are
reported; it is there as a gradient, which is all that an auxiliary loss is for.

Shape suffixes: T tokens, H hidden, G groups (segments), F inner units of an expert, E experts of a group, K = G · E of a layer.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops import functional as F

from ascend_ops.expert_dispatch import ExpertCombine, ExpertDispatch
from ascend_ops.grouped_ffn import GroupedFFN
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.batches import Batch
from pangu_sigma.ecss.store import make_store
from pangu_sigma.model.declare import Initializer, make_parameter
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.model.rowwise import softmax
from pangu_sigma.ranks.ranks import Ranks
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.training.backend import Backend, TrainingSetup
from pangu_sigma.training.loop import Trainer
from pangu_sigma.training.step import TrainStep

BALANCE = 0.01
"""Weight of the balance loss (Switch Transformer)."""


class GatedFFN(nn.Cell):
    """The gate, the experts, and the way there and back.

    construct: as that of `RoutedFFN`, of whose arguments it ignores draws and plans. `received` holds the number of tokens of each
    expert, int32 [K], in the last pass of training.
    """

    def __init__(self, config: Config, seed: int):
        """seed: of the gate's initial values, which have a generator of their own: all else is drawn as it is without a gate."""
        super().__init__()
        hidden, self.groups, self.each = config.model.hidden, len(config.model.segments), config.experts
        self.experts = self.groups * self.each
        self.gate = make_parameter("gate", (self.experts, hidden), _Drawn(seed, config.model.init_std), decay=True)
        self.received = Parameter(Tensor(np.zeros(self.experts, np.int32)), name="received", requires_grad=False)
        self.scores = ops.MatMul(transpose_b=True)
        self.softmax = softmax()
        self.best, self.join = ops.Argmax(-1, ms.int32), ops.Concat()
        self.plan, self.dispatch, self.combine = _Plan(self.each), ExpertDispatch(), ExpertCombine()
        self.ffn = GroupedFFN(config.model.activation)
        self.pick, self.mean = ops.GatherD(), ops.ReduceMean()
        self.balanced = _AlsoMinimises()

    def construct(self, residual_TH, x_TH, draws_B4, *segments):
        p_TK = self.softmax(self.scores(F.cast(x_TH, ms.float32), self.gate))
        sum_TH = F.zeros_like(residual_TH)
        received: tuple = ()
        for g in range(self.groups):
            p_TE = p_TK[:, g * self.each : (g + 1) * self.each]
            expert_T = self.best(F.stop_gradient(p_TE))
            order_T, inverse_T, offsets_E1 = self.plan(expert_T)
            received += (offsets_E1[1:] - offsets_E1[:-1],)
            weights = (*segments[g][3:], None)[:4]  # behind a plan of three arrays; only the first group has b2
            rows = self.ffn(self.dispatch(x_TH, order_T, inverse_T), *weights, offsets_E1)
            y_TH = self.combine(rows, inverse_T, order_T) * self.pick(p_TE, 1, F.reshape(expert_T, (-1, 1)))
            sum_TH = sum_TH + y_TH
        if not self.training:
            return residual_TH + sum_TH
        received_K = self.join(received)
        shares_K = F.stop_gradient(F.cast(received_K, ms.float32) / x_TH.shape[0])
        balance = self.experts / self.groups * ops.ReduceSum()(shares_K * self.mean(p_TK, 0), 0)
        return residual_TH + F.depend(self.balanced(sum_TH, BALANCE * balance), F.assign(self.received, received_K))


class _Plan(nn.Cell):
    """construct(experts_T) -> order_T, inverse_T, offsets_E1, int32: tokens sorted by expert, those of one expert in their order. A
    gate decides in the graph, so the graph sorts."""

    def __init__(self, experts: int):
        super().__init__()
        self.experts, self.sort, self.add_up = experts, ops.Sort(), ops.CumSum()

    def construct(self, experts_T):
        tokens = F.shape(experts_T)[0]
        _, order_T = self.sort(
            experts_T * tokens + ops.arange(tokens)
        )  # keys that differ: equal experts keep their order
        _, inverse_T = self.sort(order_T)
        received_TE = F.cast(F.expand_dims(experts_T, 1) == ops.arange(self.experts), ms.float32)
        offsets_E = F.cast(self.add_up(ops.ReduceSum()(received_TE, 0), 0), ms.int32)
        return order_T, inverse_T, ops.concat((ops.zeros((1,), ms.int32), offsets_E))


class _AlsoMinimises(nn.Cell):
    """construct(y, loss) -> y; on the way back, `loss` counts as a part of the loss of the step."""

    def construct(self, y, loss):
        return y

    def bprop(self, y, loss, out, dout):
        return dout, F.ones_like(loss)


class _Drawn(Initializer):
    """N(0, std), from a generator of its own."""

    def __init__(self, seed: int, std: float):
        super().__init__()
        self._drawn, self._std = np.random.default_rng(seed), std

    def _initialize(self, arr: np.ndarray) -> None:
        arr[:] = self._drawn.normal(0.0, self._std, arr.shape)


class GateBackend(Backend):
    """The CPU, with a network whose routed FFNs have a gate."""

    def build(self, config: Config, ranks: Ranks, run: StoredRun) -> TrainingSetup:
        """Raises ConfigError for what the gate does not go with: it is for one process and one pass, in float32, without ECSS."""
        _check(config, ranks)
        network, store = gated_network(config), make_store(config)
        return TrainingSetup(config, ranks, network, store, TrainStep(config, network, store, ranks))


class GateTrainer(Trainer):
    """A run whose load is the gate's."""

    def expert_load(self, batch: Batch) -> tuple[np.ndarray, list[list[int]]]:
        load_NK = received(self.network)
        return load_NK, [list(range(load_NK.shape[1]))] * len(load_NK)


def gated_network(config: Config) -> PanGuSigma:
    """The network with a gate in each RRE layer; drawn as the product draws it, and the gates from the seed and their layer."""
    network = PanGuSigma(config.model, config.slots, getattr(ms, config.train.compute_dtype))
    seeds = np.random.SeedSequence(config.seed).generate_state(config.model.rre_layers).tolist()
    for number, seed in enumerate(seeds, config.model.dense_layers):
        network.layers[number].ffn = GatedFFN(config, seed)
    network.update_parameters_name()  # by their places: a cell that is set later is named without its layer
    return network


def received(network: PanGuSigma) -> np.ndarray:
    """Tokens of each expert in the last pass of training of a gated network, int64 [layers · G, E]."""
    cells = [layer.ffn for layer in network.layers if isinstance(layer.ffn, GatedFFN)]
    return np.concatenate([cell.received.asnumpy().reshape(cell.groups, -1) for cell in cells]).astype(np.int64)


def _check(config: Config, ranks: Ranks) -> None:
    train = config.train
    for fits, key, needed in (
        (config.model.dropout == 0, f"model.dropout={config.model.dropout}", "no dropout: set 0"),
        ("common" not in config.model.segments, f"model.segments={config.model.segments}", "own segments, its groups"),
        (ranks.world == 1, f"parallel has {ranks.world} ranks", "one process"),
        (not config.ecss.enabled, "ecss.enabled=true", "all experts in each step: set false"),
        (train.accumulation == 1, f"train.accumulation={train.accumulation}", "the whole batch in one pass: set 1"),
        (
            train.compute_dtype == "float32",
            f"train.compute_dtype={train.compute_dtype}",
            "float32, whose loss is not scaled",
        ),
    ):
        if not fits:
            raise ConfigError(f"{key}: a learned gate needs {needed}")
