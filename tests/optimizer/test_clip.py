from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from pangu_sigma.optimizer.update import gradient_factor, is_finite

pytestmark = pytest.mark.usefixtures("graph_mode")


class Clip(nn.Cell):
    def construct(self, norm, scale):
        return gradient_factor(norm, scale, 0.5), is_finite(norm)


@pytest.fixture(scope="module")
def clip():
    cell = Clip()
    return lambda norm, scale: [float(t.asnumpy()) for t in cell(Tensor(norm, ms.float32), Tensor(scale, ms.float32))]


@pytest.mark.parametrize(
    ("norm", "factor"), [(4.0, 0.125), (0.5, 1.0), (0.25, 1.0), (0.0, 1.0)], ids=["longer", "equal", "shorter", "zero"]
)
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_longer_gradients_are_shortened_to_the_norm_and_others_only_unscaled(clip, norm, factor, scale):
    assert clip(norm, scale) == [pytest.approx(factor / scale, rel=1e-6), 1.0]


@pytest.mark.parametrize("norm", [np.inf, np.nan])
def test_a_norm_that_is_no_finite_number_is_an_overflow(clip, norm):
    assert clip(norm, 1024.0)[1] == 0.0
