from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from helpers.toy import toy_config
from mindspore import Tensor, nn
from mindspore.common.initializer import Normal

from pangu_sigma.model.declare import make_parameter
from pangu_sigma.optimizer.dense_adam import DenseAdam
from pangu_sigma.optimizer.update import Hyper

pytestmark = pytest.mark.usefixtures("graph_mode")

RATE, DECAY, EPS = 1e-2, 0.1, 1e-3


class Update(nn.Cell):
    def __init__(self):
        super().__init__()
        config = toy_config(train={"optimizer": {"weight_decay": DECAY, "eps_dense": EPS}})
        made = [
            make_parameter("matrix", (3, 4), Normal(1.0), decay=True),
            make_parameter("bias", (4,), Normal(1.0), decay=False),
        ]
        self.adam = DenseAdam(config, made)
        self.hyper = Hyper(config.train.optimizer, EPS)

    def construct(self, applied, *grads):
        return self.adam.update(grads, self.hyper(Tensor(RATE, ms.float32), Tensor(1.0, ms.float32), applied))


@pytest.fixture(scope="module")
def cell(graph_mode) -> Update:
    return Update()


def state(cell: Update) -> list[np.ndarray]:
    adam = cell.adam
    return [p.asnumpy().copy() for p in (*adam.weights, *adam.moments, *adam.variances, adam.step)]


def update(cell: Update, applied: float) -> list[np.ndarray]:
    grads = [np.random.default_rng(i).normal(size=p.shape).astype(np.float32) for i, p in enumerate(cell.adam.weights)]
    cell(Tensor(applied, ms.float32), *map(Tensor, grads)).asnumpy()
    return grads


def test_the_first_update_moves_by_the_rate_and_decays_where_that_is_declared(cell):
    before = state(cell)
    grads = update(cell, 1.0)
    after = state(cell)
    assert after[-1].tolist() == before[-1] + 1 == [1]
    for i, decay in enumerate((DECAY, 0.0)):
        move = grads[i] / (np.abs(grads[i]) + EPS)  # unbiased moments of one gradient are the gradient
        np.testing.assert_allclose(after[i], before[i] * (1 - RATE * decay) - RATE * move, rtol=1e-5, atol=1e-6)


def test_an_update_that_is_not_applied_changes_no_bit(cell):
    before = state(cell)
    update(cell, 0.0)
    assert [a.tobytes() for a in state(cell)] == [a.tobytes() for a in before]
