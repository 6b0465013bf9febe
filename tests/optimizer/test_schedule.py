from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from pangu_sigma.mindformers_adapter import quiet_mindformers
from pangu_sigma.optimizer.update import Schedule
from pangu_sigma.sections import OptimizerConfig

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.mark.parametrize(
    ("peak", "end", "warmup", "decay"), [(1e-3, 1e-4, 50, 450), (1e-4, 2e-5, 5_000, 180_000), (5e-5, 5e-6, 0, 7)]
)
def test_the_rate_is_mindformers_own_bit_for_bit(graph_mode, peak, end, warmup, decay):
    with quiet_mindformers():
        from mindformers.core.lr import CosineWithWarmUpLR

    theirs = CosineWithWarmUpLR(learning_rate=peak, warmup_steps=warmup, total_steps=warmup + decay, lr_end=end)
    ours = Schedule(OptimizerConfig(peak_lr=peak, end_lr=end, warmup_steps=warmup, decay_steps=decay))
    for update in np.unique(np.geomspace(1, warmup + decay + 3, 300).astype(int)).tolist():
        assert ours(update) == float(theirs(Tensor(update, ms.float32))), update


def test_the_papers_numbers(graph_mode):
    schedule = Schedule(OptimizerConfig())
    assert schedule(1) == pytest.approx(1e-4 / 5_000, rel=1e-4)
    assert schedule(5_000) == pytest.approx(1e-4, rel=1e-6)
    assert schedule(95_000) == pytest.approx(6e-5, rel=1e-4), "half-way down"
    assert schedule(185_000) == pytest.approx(2e-5, rel=1e-5)
    assert schedule(10**7) == pytest.approx(2e-5, rel=1e-5)
