"""Bench of the routed FFN of one RRE layer, forward and backward, against a dense FFN of equal FLOPs and torch's usual ways.

Every contender gets the same plan, rows and weights, adds the residual, and returns y and the gradients of x and of all weights.

Shape suffixes: T tokens, H hidden, F ffn, A experts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops

from ascend_ops.expert_dispatch import ExpertCombine, ExpertDispatch, plan_oracle
from ascend_ops.grouped_ffn import GroupedFFN, one_expert
from experiments.bench.harness import Row, absent, compare, take_turns
from pangu_sigma.process import use_cpu
from pangu_sigma.rre.table import draw_tables
from pangu_sigma.sections import Activation, RoutingConfig

LAYER_TOKENS, LAYER_HIDDEN, LAYER_FFN, LAYER_EXPERTS = 4096, 512, 2048, 16
LAYER_VOCABULARY = 40_000
SEED = 7
"""Seed of tokens and table. It loads the fullest expert 2.2 times the mean, which is usual for random tables of 16 experts."""

GROUPED, LOOP = "torch grouped_mm", "torch loop over w[e] (HF eager)"


@dataclass(frozen=True)
class RoutedLayer:
    """Inputs of one layer. weights: w1_AFH, b1_AF, w2_AFH, b2_AH; experts_T: the expert of each token."""

    x_TH: np.ndarray
    residual_TH: np.ndarray
    dy_TH: np.ndarray
    weights: tuple[np.ndarray, ...]
    experts_T: np.ndarray

    @property
    def load_A(self) -> np.ndarray:
        """Number of tokens of each expert."""
        return np.bincount(self.experts_T, minlength=len(self.weights[0]))


def run(peers: bool) -> list[Row]:
    """Rows of the bench. peers: True to compare with torch, if it is installed."""
    use_cpu()
    layer = make_layer()
    contenders = {"ours": ours(layer), "our dense FFN of equal FLOPs": dense(layer)}
    has_torch = importlib.util.find_spec("torch") is not None
    if peers and has_torch:
        contenders |= {GROUPED: torch_layer(layer, grouped_mm), LOOP: torch_layer(layer, loop_over_experts)}
    load_A = layer.load_A
    sizes = f"{LAYER_TOKENS}x{LAYER_HIDDEN}x{LAYER_FFN}, {LAYER_EXPERTS} experts"
    case = f"routed FFN fwd+bwd {sizes}, max/mean load {load_A.max() / load_A.mean():.2f}"
    rows = compare("moe", case, take_turns(contenders))
    if peers and not has_torch:
        rows += [absent("moe", case, rows[0].ours, peer, "ms", rows[0].runs) for peer in (GROUPED, LOOP)]
    return rows


def make_layer() -> RoutedLayer:
    """A layer of Zipf distributed tokens, sent to experts by a random table."""
    rng = np.random.default_rng(SEED)
    frequency_V = 1 / np.arange(1, LAYER_VOCABULARY + 1)
    ids_T = rng.choice(LAYER_VOCABULARY, LAYER_TOKENS, p=frequency_V / frequency_V.sum())
    table = draw_tables(RoutingConfig(seed=SEED), 1, 1, LAYER_VOCABULARY, LAYER_EXPERTS, None)
    zeros_T = np.zeros_like(ids_T)
    x_TH, residual_TH, dy_TH = (rng.standard_normal((LAYER_TOKENS, LAYER_HIDDEN), dtype=np.float32) for _ in range(3))
    shapes = (
        (LAYER_EXPERTS, LAYER_FFN, LAYER_HIDDEN),
        (LAYER_EXPERTS, LAYER_FFN),
        (LAYER_EXPERTS, LAYER_FFN, LAYER_HIDDEN),
        (LAYER_EXPERTS, LAYER_HIDDEN),
    )
    weights = tuple(0.02 * rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
    return RoutedLayer(x_TH, residual_TH, dy_TH, weights, table.route(ids_T, zeros_T, zeros_T)[0])


class Routed(nn.Cell):
    """Dispatch, experts, combine with residual."""

    def __init__(self):
        super().__init__()
        self.dispatch, self.ffn, self.combine = ExpertDispatch(), GroupedFFN(), ExpertCombine()

    def construct(self, x_TH, w1_AFH, b1_AF, w2_AFH, b2_AH, residual_TH, order_T, inverse_T, offsets_A1):
        rows_TH = self.ffn(self.dispatch(x_TH, order_T, inverse_T), w1_AFH, b1_AF, w2_AFH, b2_AH, offsets_A1)
        return self.combine(rows_TH, inverse_T, order_T, residual_TH)


class Dense(nn.Cell):
    """A dense FFN: one expert meets every token."""

    def __init__(self, activation: Activation):
        super().__init__()
        self.ffn = GroupedFFN(activation)

    def construct(self, x_TH, w1_AFH, b1_AF, w2_AFH, b2_AH, residual_TH, offsets_A1):
        return residual_TH + self.ffn(x_TH, w1_AFH, b1_AF, w2_AFH, b2_AH, offsets_A1)


class ForwardBackward(nn.Cell):
    """Forward and backward of a layer: it returns y and the gradients of x and of the weights, for a given gradient of y."""

    def __init__(self, layer: nn.Cell, weights: int):
        super().__init__()
        self.layer, self.gradients = layer, 1 + weights

    def construct(self, dy_TH, *inputs):
        y_TH, pull_back = ops.vjp(self.layer, *inputs)
        return y_TH, pull_back(dy_TH)[: self.gradients]


def ours(layer: RoutedLayer) -> Callable[[], list[np.ndarray]]:
    """The layer as the model has it."""
    plan = plan_oracle(layer.experts_T, len(layer.weights[0]))
    return layer_graph(Routed(), layer, layer.weights, map(Tensor, plan))


def dense(layer: RoutedLayer, activation: Activation = "fast_gelu") -> Callable[[], list[np.ndarray]]:
    """The layer with all tokens through the first expert: as many multiplications, and nothing to route."""
    return layer_graph(Dense(activation), layer, tuple(w[:1] for w in layer.weights), [one_expert(len(layer.x_TH))])


def layer_graph(
    cell: nn.Cell, layer: RoutedLayer, weights: tuple[np.ndarray, ...], plan: Any
) -> Callable[[], list[np.ndarray]]:
    """Forward and backward of a layer as a graph. cell: construct(x_TH, weights, residual_TH, the arrays of `plan`)."""
    step = ForwardBackward(cell, len(weights))
    inputs = [Tensor(np.ascontiguousarray(a)) for a in (layer.dy_TH, layer.x_TH, *weights, layer.residual_TH)]
    inputs += plan

    def work() -> list[np.ndarray]:
        y_TH, gradients = step(*inputs)
        return [tensor.asnumpy() for tensor in (y_TH, *gradients)]  # waits; on the CPU these are views

    return work


def torch_layer(layer: RoutedLayer, experts: Callable[..., Any]) -> Callable[[], list[np.ndarray]]:
    """A layer in torch; `experts(x_TH, weights, experts_T)` is the way to multiply by them."""
    import torch

    x_TH, *weights = (torch.tensor(a, requires_grad=True) for a in (layer.x_TH, *layer.weights))
    residual_TH, dy_TH = torch.from_numpy(layer.residual_TH), torch.from_numpy(layer.dy_TH)
    experts_T = torch.from_numpy(layer.experts_T).long()

    def work() -> list[np.ndarray]:
        for leaf in (x_TH, *weights):
            leaf.grad = None
        y_TH = residual_TH + experts(x_TH, weights, experts_T)
        y_TH.backward(dy_TH)
        return [y_TH.detach().numpy(), *(leaf.grad.numpy() for leaf in (x_TH, *weights))]

    return work


def grouped_mm(x_TH: Any, weights: list[Any], experts_T: Any) -> Any:
    """Result of the experts by transformers' fastest CPU backend: sort, two grouped GEMMs, unsort."""
    import torch
    from torch.nn.functional import embedding

    w1_AFH, b1_AF, w2_AFH, b2_AH = weights
    order_T = torch.argsort(experts_T, stable=True)
    sorted_T = experts_T[order_T]
    ends_A = torch.bincount(experts_T, minlength=len(w1_AFH)).cumsum(0).to(torch.int32)
    multiply = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
    inner_TF = multiply(x_TH[order_T], w1_AFH.transpose(1, 2), offs=ends_A) + embedding(sorted_T, b1_AF)
    rows_TH = multiply(fast_gelu(inner_TF), w2_AFH, offs=ends_A) + embedding(sorted_T, b2_AH)
    return rows_TH[torch.argsort(order_T)]


def loop_over_experts(x_TH: Any, weights: list[Any], experts_T: Any) -> Any:
    """Result of the experts by transformers' eager loop: for each, pick its rows, multiply by w[e], add into the result."""
    import torch

    w1_AFH, b1_AF, w2_AFH, b2_AH = weights
    y_TH = torch.zeros_like(x_TH)
    for e in range(len(w1_AFH)):
        rows = torch.where(experts_T == e)[0]
        inner = torch.addmm(b1_AF[e], x_TH.index_select(0, rows), w1_AFH[e].T)
        y_TH = y_TH.index_add(0, rows, torch.addmm(b2_AH[e], fast_gelu(inner), w2_AFH[e]))
    return y_TH


def fast_gelu(x: Any) -> Any:
    """FastGeLU, x · sigmoid(1.702 x), as one fused operator of torch and two in-place products."""
    from torch.nn.functional import silu

    return silu(1.702 * x).mul_(1 / 1.702)
