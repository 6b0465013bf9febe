"""Tensors that are joined to be summed over ranks come back as they were."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from pangu_sigma.ranks.reduce import JoinedAllReduce

pytestmark = pytest.mark.usefixtures("graph_mode")


class Twice(ms.nn.Cell):
    """An AllReduce of two ranks with the same values."""

    def construct(self, x):
        return x + x


def test_each_tensor_is_summed_in_its_place_and_shape():
    shapes = [(2, 3), (4,), (1, 2, 2), (9,), ()]
    tensors = [np.random.default_rng(0).random(shape).astype(np.float32) for shape in shapes]
    cell = JoinedAllReduce("mccl_world_group")
    cell.all_reduce = Twice()
    for found, expected in zip(cell(tuple(map(Tensor, tensors)), Tensor(0.0)), tensors, strict=True):
        assert found.shape == expected.shape
        assert np.array_equal(found.asnumpy(), 2 * expected)
