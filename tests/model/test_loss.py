from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from pangu_sigma.model.declare import as_input
from pangu_sigma.model.pangu_sigma import NextTokenLoss
from pangu_sigma.training.step import EXPERTS_ARGUMENT, ScaledLoss

pytestmark = pytest.mark.usefixtures("graph_mode")

BLOCKS, TOKENS, E_ARGUMENT = 2, 6, 5


class FixedLogits(nn.Cell):
    """In place of the network: its logits are a parameter, and it records what it was given."""

    def __init__(self, logits_MTR: np.ndarray):
        super().__init__()
        self.value = Parameter(Tensor(logits_MTR.reshape(-1, E_ARGUMENT)), name="value")

    def construct(self, rows, positions, documents, draws, order, inverse, offsets, e, experts):
        return self.value + 0.0 * ops.cast(rows.sum(), ms.float32)

    def logits(self, hidden_TR, slots_M):
        return ops.reshape(hidden_TR, (BLOCKS, -1, E_ARGUMENT))


def inputs(weights_BS: np.ndarray, labels_BS: np.ndarray, scale: float = 1.0) -> list[Tensor]:
    unused = np.zeros((4, 3), np.int32)
    whole = [unused, unused, unused, np.zeros(BLOCKS, np.int32), labels_BS, weights_BS, unused]
    arrays = [*whole, (), (), (), (), ()]  # no plan, no rows and no experts
    return [Tensor(scale, ms.float32), *map(as_input, arrays)]


def cross_entropy(logits_MTR: np.ndarray, labels_MT: np.ndarray) -> np.ndarray:
    """[M, T] in float64."""
    logits = logits_MTR.astype(np.float64)
    top = logits.max(axis=-1, keepdims=True)
    total = (np.log(np.exp(logits - top).sum(axis=-1, keepdims=True)) + top)[..., 0]
    return total - np.take_along_axis(logits, labels_MT[..., None], axis=-1)[..., 0]


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits [M, T, R], labels and weights [B, S]; four sequences of three tokens, two in a block."""
    rng = np.random.default_rng(0)
    weights = rng.random((4, 3), np.float32)
    weights[1, 2] = 0
    return (
        rng.normal(0, 3, (BLOCKS, TOKENS, E_ARGUMENT)).astype(np.float32),
        rng.integers(0, E_ARGUMENT, (4, 3), np.int32),
        weights,
    )


def test_it_is_the_weighted_cross_entropy_of_each_block(case):
    logits, labels, weights = case
    network = FixedLogits(logits)
    loss, expected = ScaledLoss(network), cross_entropy(logits, labels.reshape(BLOCKS, -1))
    expected *= weights.reshape(BLOCKS, -1)
    for scale in (1.0, 1024.0):  # of the total only
        total, per_block = loss(*inputs(weights, labels, scale))
        np.testing.assert_allclose(per_block.asnumpy(), expected.sum(axis=1), rtol=1e-6)
        assert float(total.asnumpy()) == pytest.approx(scale * expected.sum(), rel=1e-6)
    large = np.zeros((BLOCKS * TOKENS, E_ARGUMENT), np.float32)
    large[:, 0] = 1e4
    network.value.set_data(Tensor(large))
    total, _ = loss(*inputs(weights, np.ones_like(labels)))
    assert float(total.asnumpy()) == pytest.approx(1e4 * weights.sum(), rel=1e-6), "finite"


def test_it_is_told_by_sequence_where_that_is_asked_for(graph_mode, case):
    logits, labels, weights = case
    _, *batch = inputs(weights, labels)
    per_sequence = NextTokenLoss(FixedLogits(logits), by_sequence=True)(*batch)
    expected = cross_entropy(logits, labels.reshape(BLOCKS, -1)).reshape(weights.shape) * weights
    np.testing.assert_allclose(per_sequence.asnumpy(), expected.sum(axis=1), rtol=1e-5)


def test_the_gradient_is_softmax_minus_label(graph_mode, case):
    logits, labels, weights = case
    network = FixedLogits(logits)
    assert len(inputs(weights, labels)) == EXPERTS_ARGUMENT + 1, "experts are the last argument"
    _, gradient = ms.value_and_grad(ScaledLoss(network), None, network.trainable_params(), has_aux=True)(
        *inputs(weights, labels, 8.0)
    )
    chances = np.exp(logits.astype(np.float64).reshape(-1, E_ARGUMENT))
    chances /= chances.sum(axis=-1, keepdims=True)
    expected = 8 * weights.reshape(-1, 1) * (chances - np.eye(E_ARGUMENT)[labels.reshape(-1)])
    np.testing.assert_allclose(gradient[0].asnumpy(), expected, rtol=1e-4, atol=1e-6)
