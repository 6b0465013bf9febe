from __future__ import annotations

import mindspore as ms
import pytest
from mindspore import Tensor

from ascend_ops.adam import HYPER
from pangu_sigma.optimizer.update import Hyper
from pangu_sigma.sections import OptimizerConfig

pytestmark = pytest.mark.usefixtures("graph_mode")


def test_every_number_is_where_the_operator_reads_it():
    hyper = Hyper(OptimizerConfig(beta1=0.5, beta2=0.75), eps=0.125)
    found = hyper(*(Tensor(value, ms.float32) for value in (0.25, 2.0, 1.0))).asnumpy()
    assert dict(zip(HYPER, found.tolist(), strict=True)) == {
        "lr": 0.25,
        "grad_scale": 2.0,
        "apply": 1.0,
        "beta1": 0.5,
        "beta2": 0.75,
        "eps": 0.125,
    }
