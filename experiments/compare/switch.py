"""A learned top-1 gate as a peer of RRE: the FFN of Switch Transformer (Fedus et al., 2021), in the product's own step and loop.

Each token goes to one expert of a single pool of all K experts of the layer, whatever its domain: the one whose probability, of a
float32 softmax over a linear gate, is the largest; its output is multiplied by that probability. For each layer the loss has
0.01 · K · Σ f_k · P_k besides, f the share of the tokens and P the mean probability of expert k (its equations 4 to 6). So a token
has the active size that it has under RRE. Unlike there, no token is dropped (there is no capacity), the gate's input has no noise,
and the gate is drawn as all of our weights are.

The routing plan that the batch brings is not read: the graph makes its own. The balance loss is not in the losses that are
reported; it is there as a gradient, which is all that an auxiliary loss is for.

Shape suffixes: T tokens, H hidden, F ffn, K experts of a layer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops import functional as F

from ascend_ops.expert_dispatch import ExpertCombine, ExpertDispatch, MakeRoutingPlan
from ascend_ops.grouped_ffn import GroupedFFN
from pangu_sigma.checkpoint.run_folder import RunFolder
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.ecss.store import make_store
from pangu_sigma.model.declare import Initializer, make_parameter
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.model.rowwise import softmax
from pangu_sigma.parallel.ranks import Ranks
from pangu_sigma.rre.experts import Experts
from pangu_sigma.train.backend import CpuBackend, TrainingSetup
from pangu_sigma.train.log.metrics import StepMetrics
from pangu_sigma.train.loop import Trainer
from pangu_sigma.train.step import TrainStep

BALANCE = 0.01
"""Weight of the balance loss (Switch Transformer)."""


class SwitchFFN(nn.Cell):
    """The gate, the experts, and the way there and back.

    construct(x_TH, w1_KFH, b1_KF, w2_KFH, b2_KH, offsets) -> [T, H], by token; the offsets are ignored, and may be None.
    `received` holds the number of tokens of each expert, int32 [K], in the last pass of training.
    """

    def __init__(self, config: Config, seed: int):
        """seed: of the gate's initial values, which have a generator of their own: all else is drawn as it is without a gate."""
        super().__init__()
        experts, hidden = config.experts, config.model.hidden
        self.gate = make_parameter("gate", (experts, hidden), _Drawn(seed, config.model.init_std), decay=True)
        self.received = Parameter(Tensor(np.zeros(experts, np.int32)), name="received", requires_grad=False)
        self.experts = experts
        self.scores = ops.MatMul(transpose_b=True)
        self.softmax = softmax()
        self.best = ops.Argmax(-1, ms.int32)
        self.plan, self.dispatch, self.combine = MakeRoutingPlan(experts), ExpertDispatch(), ExpertCombine()
        self.ffn = GroupedFFN(config.model.activation)
        self.pick, self.mean = ops.GatherD(), ops.ReduceMean()
        self.balanced = _AlsoMinimises()

    def construct(self, x_TH, w1_KFH, b1_KF, w2_KFH, b2_KH, offsets):
        p_TK = self.softmax(self.scores(F.cast(x_TH, ms.float32), self.gate))
        expert_T = self.best(F.stop_gradient(p_TK))
        order_T, inverse_T, offsets_K1 = self.plan(expert_T)
        received_K = offsets_K1[1:] - offsets_K1[:-1]
        rows = self.ffn(self.dispatch(x_TH, order_T, inverse_T), w1_KFH, b1_KF, w2_KFH, b2_KH, offsets_K1)
        y_TH = self.combine(rows, inverse_T, order_T) * self.pick(p_TK, 1, F.reshape(expert_T, (-1, 1)))
        if not self.training:
            return y_TH
        shares_K = F.stop_gradient(F.cast(received_K, ms.float32) / x_TH.shape[0])
        balance = self.experts * ops.ReduceSum()(shares_K * self.mean(p_TK, 0), 0)
        return F.depend(self.balanced(y_TH, BALANCE * balance), F.assign(self.received, received_K))


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


class _Rows(nn.Cell):
    """The dispatch of `Experts` for a cell that dispatches by itself: the rows are the tokens."""

    def construct(self, x_TH, order, inverse_T):
        return x_TH


class _Residual(nn.Cell):
    """The combine that goes with it."""

    def construct(self, y_TH, inverse_T, order, residual_TH):
        return residual_TH + y_TH


class GateBackend(CpuBackend):
    """The CPU, with a network whose routed FFNs have a gate."""

    def build(self, config: Config, ranks: Ranks, run: RunFolder) -> TrainingSetup:
        """Raises ConfigError for what the gate does not go with: it is for one process and one pass, in float32, without ECSS."""
        _check(config, ranks)
        network, store = gated_network(config), make_store(config)
        return TrainingSetup(config, ranks, network, store, TrainStep(config, network, store, ranks))


class GateTrainer(Trainer):
    """A run whose load is the gate's."""

    def metrics(self, *taken: Any) -> StepMetrics:
        return replace(super().metrics(*taken), load_NK=received(self.network))


def gated_network(config: Config) -> PanGuSigma:
    """The network with a gate in each RRE layer; drawn as the product draws it, and the gates from the seed and their layer."""
    seeds = iter(np.random.SeedSequence(config.seed).generate_state(config.model.rre_layers).tolist())
    return PanGuSigma(
        config.model,
        config.slots,
        getattr(ms, config.train.compute_dtype),
        routed=lambda *_: Experts(_Rows(), SwitchFFN(config, next(seeds)), _Residual()),
    )


def received(network: PanGuSigma) -> np.ndarray:
    """Tokens of each expert in the last pass of training of a gated network, int64 [N, K]."""
    cells = [cell for _, cell in network.cells_and_names() if isinstance(cell, SwitchFFN)]
    return np.stack([cell.received.asnumpy() for cell in cells]).astype(np.int64)


def _check(config: Config, ranks: Ranks) -> None:
    scale, train = config.train.loss_scale, config.train
    for fits, key, needed in (
        (ranks.world == 1, f"parallel has {ranks.world} ranks", "one process"),
        (not config.ecss.enabled, "ecss.enabled=true", "all experts in each step: set false"),
        (train.accumulation == 1, f"train.accumulation={train.accumulation}", "the whole batch in one pass: set 1"),
        (train.compute_dtype == "float32", f"train.compute_dtype={train.compute_dtype}", "float32"),
        (scale.initial == 1, f"train.loss_scale.initial={scale.initial}", "a loss that is not scaled: set 1"),
        (scale.window > train.steps, f"train.loss_scale.window={scale.window}", "one of more than train.steps"),
    ):
        if not fits:
            raise ConfigError(f"{key}: a learned gate needs {needed}")
