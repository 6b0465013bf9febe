"""Dropless experts: what a rank computes of the rows of its experts, against NumPy in float64.

Their way between ranks is followed in tests/npu/test_planner.py, their step in test_step.py, and both are compiled in
tests/npu/plan/test_compile.py. The operator itself, GroupedMatmul, runs on NPUs only; a stand-in runs here, of which these results
and those of the step say that it groups rows as the operator does.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers.grouped_matmul import GroupedMatmulOnCpu
from mindspore import Tensor

from ascend_ops.grouped_ffn import grouped_ffn_oracle
from pangu_sigma.npu import dropless
from pangu_sigma.npu.dropless import dropless_experts
from pangu_sigma.ranks.connect import Groups
from pangu_sigma.ranks.layout import Layout
from pangu_sigma.sections import ParallelConfig

pytestmark = pytest.mark.usefixtures("graph_mode")

ENDS = [np.array([4, 4, 9]), np.array([0, 5, 9]), np.array([9, 9, 9])]


@pytest.mark.parametrize("ends_A", [*ENDS, np.array([9])], ids=str)
def test_the_rows_of_an_expert_go_through_its_ffn(ends_A: np.ndarray, monkeypatch):
    """With biases, which the operator does not add; experts without rows among them."""
    monkeypatch.setattr(dropless, "grouped_matmul", GroupedMatmulOnCpu)
    experts, hidden, ffn = len(ends_A), 4, 6
    rng = np.random.default_rng(1)
    shapes = ((9, hidden), (experts, ffn, hidden), (experts, ffn), (experts, ffn, hidden), (experts, hidden))
    x, w1, b1, w2, b2 = (rng.normal(size=shape) for shape in shapes)
    cell = dropless_experts(Groups(Layout(ParallelConfig()), 0), hidden, "fast_gelu", cann=True).ffn
    arrays = (x, w1, b1[:, None], w2, b2[:, None])
    y = cell(*(Tensor(a.astype(np.float32)) for a in arrays), Tensor(ends_A.astype(np.int32))).asnumpy()
    expected = grouped_ffn_oracle(x, w1, b1, w2, b2, np.append(0, ends_A))
    np.testing.assert_allclose(y, expected, atol=1e-5)
