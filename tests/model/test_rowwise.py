"""The CPU's LayerNorm and softmax, forward and backward, against float64."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from pangu_sigma.model.rowwise import EPSILON, LayerNorm, softmax

pytestmark = pytest.mark.usefixtures("graph_mode")

ROWS, COLUMNS = 7, 24


class Weighed(nn.Cell):
    """Gradient of sum(net(x) · dy) with respect to x and the parameters."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        parameters = ms.ParameterTuple(net.trainable_params()) if isinstance(net, nn.Cell) else ()
        self.grad = ops.GradOperation(get_all=True, get_by_list=bool(parameters), sens_param=True)
        self.parameters = parameters

    def construct(self, x, dy):
        if self.parameters:
            return self.grad(self.net, self.parameters)(x, dy)
        return self.grad(self.net)(x, dy)


def draw(*shape: int, around: float = 0.0, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(shape)
    return (around + spread * rng.standard_normal(shape)).astype(np.float32)


def assert_close(actual: Tensor, expected: np.ndarray) -> None:
    assert np.abs(actual.asnumpy() - expected).max() <= 2e-6 * np.abs(expected).max()


@pytest.fixture(params=[(0.0, 1.0), (30.0, 2.0), (0.0, 1e-3)], ids=["plain", "shifted", "small"])
def norm_case(request, graph_mode) -> tuple[LayerNorm, np.ndarray, np.ndarray]:
    """A LayerNorm with drawn parameters, rows, and a gradient of its output."""
    norm = LayerNorm(COLUMNS)
    norm.gain.set_data(Tensor(draw(COLUMNS, around=1.0)))
    norm.bias.set_data(Tensor(draw(COLUMNS)))
    around, spread = request.param
    return norm, draw(ROWS, COLUMNS, around=around, spread=spread), draw(ROWS, COLUMNS + 1)[:, :-1]


def normalised(x_TH: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centred = x_TH - x_TH.mean(axis=-1, keepdims=True)
    r_T1 = 1 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
    return centred * r_T1, r_T1


def test_layer_norm_and_its_gradients_are_the_formula(norm_case):
    norm, x, dy = norm_case
    n, r = normalised(x.astype(np.float64))
    expected = n * norm.gain.asnumpy() + norm.bias.asnumpy()
    np.testing.assert_allclose(norm(Tensor(x)).asnumpy(), expected, rtol=0, atol=2e-5 if x.max() > 10 else 2e-6)
    (dx,), (dgain, dbias) = Weighed(norm)(Tensor(x), Tensor(dy))
    g = dy * norm.gain.asnumpy().astype(np.float64)
    assert_close(dx, r * (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True)))
    assert_close(dgain, (dy * n).sum(axis=0))
    assert_close(dbias, dy.astype(np.float64).sum(axis=0))


def test_layer_norm_of_half_precision_is_computed_in_float32(graph_mode):
    norm, x = LayerNorm(COLUMNS), draw(ROWS, COLUMNS, around=100.0).astype(np.float16)
    actual = norm(Tensor(x))
    assert actual.dtype == ms.float32
    np.testing.assert_allclose(actual.asnumpy(), normalised(x.astype(np.float64))[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(ROWS, COLUMNS), (2, 3, 4, COLUMNS)])
def test_softmax_and_its_gradient_are_the_formula(graph_mode, shape):
    x, dy = draw(*shape, spread=3.0), draw(*shape, 2)[..., 0]
    x[..., 3] = -10_000.0  # hidden
    y = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
    y /= y.sum(axis=-1, keepdims=True)
    net = softmax()
    assert_close(net(Tensor(x)), y)
    (dx,) = Weighed(net)(Tensor(x), Tensor(dy))
    assert_close(dx, y * (dy - (y * dy).sum(axis=-1, keepdims=True)))
    assert (dx.asnumpy()[..., 3] == 0).all()
