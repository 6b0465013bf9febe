from __future__ import annotations

import mindspore as ms
import pytest
from helpers.toy import toy_config
from mindspore import Tensor, nn

from pangu_sigma.optimizer.update import LossScale

pytestmark = pytest.mark.usefixtures("graph_mode")


class Advance(nn.Cell):
    def __init__(self):
        super().__init__()
        train = {"compute_dtype": "float16", "loss_scale": {"initial": 1024.0, "window": 3}}
        self.scale = LossScale(toy_config(train=train))

    def construct(self, finite, learns):
        return self.scale.update(finite, learns)


@pytest.fixture(scope="module")
def compiled(graph_mode) -> Advance:
    return Advance()


@pytest.fixture
def advance(compiled):
    """advance(finite, learns) -> the scale after it; each test begins at 1024."""
    scale = compiled.scale
    scale.value.set_data(Tensor(1024.0, ms.float32))
    scale.good_steps.set_data(Tensor(0, ms.int32))

    def step(finite: float, learns: float = 1.0) -> float:
        compiled(Tensor(finite, ms.float32), Tensor(learns, ms.float32))
        return float(scale.value.asnumpy())

    return step


def test_it_doubles_after_every_window_of_good_steps(advance):
    assert [advance(1.0) for _ in range(7)] == [1024, 1024, 2048, 2048, 2048, 4096, 4096]


def test_an_overflow_halves_it_and_begins_the_window_again(advance):
    assert [advance(f) for f in (1.0, 1.0, 0.0, 1.0, 1.0, 1.0)] == [1024, 1024, 512, 512, 512, 1024]


def test_it_never_falls_below_one(advance):
    assert [advance(0.0) for _ in range(12)][-3:] == [1, 1, 1]


def test_a_step_that_does_not_learn_changes_nothing(advance):
    assert [advance(f, 0.0) for f in (1.0, 1.0, 1.0, 1.0, 0.0)] == [1024] * 5
    assert [advance(1.0) for _ in range(3)] == [1024, 1024, 2048]


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_other_types_than_float16_have_none(graph_mode, compute_dtype):
    train = {"compute_dtype": compute_dtype, "loss_scale": {"initial": 1024.0, "window": 1}}
    advance = Advance()
    advance.scale = LossScale(toy_config(train=train, parallel={"chip": "910b"}))
    for finite in (1.0, 1.0, 0.0, 1.0):
        advance(Tensor(finite, ms.float32), Tensor(1.0, ms.float32))
        assert advance.scale.value.asnumpy() == 1.0
