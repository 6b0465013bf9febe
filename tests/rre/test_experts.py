"""Both layouts of the sorted rows send every token through its own expert, forward and backward."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from ascend_ops.grouped_ffn import grouped_ffn_oracle
from pangu_sigma.rre.experts import Experts, grouped_experts, padded_experts
from pangu_sigma.rre.plan import RoutedSegment, RoutingPlan, plan_segment
from pangu_sigma.sections import Activation

pytestmark = pytest.mark.usefixtures("graph_mode")

HIDDEN, FFN, STORED = 6, 10, 8


class RoutedLayer(nn.Cell):
    """Residual plus the FFN of each token's expert."""

    def __init__(self, experts: Experts):
        super().__init__()
        self.dispatch, self.ffn, self.combine = experts

    def construct(self, x_TH, residual_TH, order, inverse_T, offsets_A1, *weights):
        rows = self.ffn(self.dispatch(x_TH, order, inverse_T), *weights, offsets_A1)
        return self.combine(rows, inverse_T, order, residual_TH)


def plan_of() -> tuple[RoutingPlan, np.ndarray]:
    """The plan of 20 tokens, and the expert of each."""
    experts_T = np.random.default_rng(1).integers(0, STORED, 20)
    segment = RoutedSegment(0, "own", STORED, np.arange(STORED), STORED, True)
    return plan_segment(segment, experts_T[None], experts_T), experts_T


def padded(plan: RoutingPlan) -> tuple[np.ndarray, np.ndarray]:
    """order [A, C] and inverse [T] of the plan's one pass, every expert filled up with token 0 to the capacity of the fullest."""
    load_A = np.diff(plan.offsets_GA1[0])
    order_AC, inverse_T = np.zeros((len(load_A), load_A.max()), np.int32), np.empty_like(plan.inverse_GT[0])
    for entry, first in enumerate(plan.offsets_GA1[0, :-1]):
        tokens = plan.order_GT[0, first : first + load_A[entry]]
        order_AC[entry, : len(tokens)] = tokens
        inverse_T[tokens] = entry * load_A.max() + np.arange(len(tokens))
    return order_AC, inverse_T


def weights_of(rng: np.random.Generator) -> list[np.ndarray]:
    shapes = [(STORED, FFN, HIDDEN), (STORED, FFN), (STORED, FFN, HIDDEN), (STORED, HIDDEN)]
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def expected_of(
    x: np.ndarray,
    residual: np.ndarray,
    experts_T: np.ndarray,
    weights: list[np.ndarray],
    activation: Activation = "fast_gelu",
) -> np.ndarray:
    wide = [weight.astype(np.float64) for weight in weights]
    rows = [
        grouped_ffn_oracle(x[t : t + 1].astype(np.float64), *(w[e : e + 1] for w in wide), np.array([0, 1]), activation)
        for t, e in enumerate(experts_T)
    ]
    return residual + np.concatenate(rows)


@pytest.mark.parametrize(("layout", "activation"), [("grouped", "fast_gelu"), ("padded", "tanh"), ("padded", "erf")])
def test_every_token_meets_its_own_expert(layout: str, activation: Activation):
    rng = np.random.default_rng(0)
    plan, experts_T = plan_of()
    x, residual = rng.standard_normal((2, len(experts_T), HIDDEN)).astype(np.float32)
    weights = weights_of(rng)
    active_A, order, inverse_T, offsets = plan.active_A, plan.order_GT[0], plan.inverse_GT[0], plan.offsets_GA1[0]
    given = weights
    if layout == "padded":
        (order, inverse_T), offsets = padded(plan), None
        given = [w[:, None] if w.ndim == 2 else w for w in weights]
    layer = RoutedLayer((padded_experts if layout == "padded" else grouped_experts)(activation))
    arguments = [Tensor(order), Tensor(inverse_T), None if offsets is None else Tensor(offsets)]
    arguments += [Tensor(w[active_A]) for w in given]
    expected = expected_of(x, residual, experts_T, weights, activation)
    actual = layer(Tensor(x), Tensor(residual), *arguments).asnumpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)

    gradients = ms.grad(layer, (0, 1))(Tensor(x), Tensor(residual), *arguments)
    step = 1e-6
    for t in (0, 7, len(x) - 1):
        for h in range(HIDDEN):
            up, down = x.astype(np.float64), x.astype(np.float64)
            up[t, h] += step
            down[t, h] -= step
            two = [expected_of(moved, residual, experts_T, weights, activation).sum() for moved in (up, down)]
            assert gradients[0].asnumpy()[t, h] == pytest.approx((two[0] - two[1]) / (2 * step), rel=1e-3, abs=1e-3)
    assert (gradients[1].asnumpy() == 1).all()
