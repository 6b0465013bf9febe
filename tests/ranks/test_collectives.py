"""Tensors that are summed over ranks in buckets come back as they were."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from pangu_sigma.ranks.reduce import BucketedAllReduce, _buckets

pytestmark = pytest.mark.usefixtures("graph_mode")


def test_buckets_hold_neighbours_up_to_their_size():
    assert _buckets([3, 4, 5, 9, 1], 8) == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert _buckets([3, 4, 5], 100) == [(0, 3)]
    assert _buckets([3, 4], 0) == [(0, 1), (1, 2)]


class Same(ms.nn.Cell):
    """An AllReduce of one rank."""

    def construct(self, x):
        return x


def test_tensors_come_back_from_their_buckets_in_their_shapes():
    shapes = [(2, 3), (4,), (1, 2, 2), (9,), ()]
    tensors = [np.random.default_rng(0).random(shape).astype(np.float32) for shape in shapes]
    cell = BucketedAllReduce("mccl_world_group", shapes, 10)
    cell.all_reduce = Same()
    for found, expected in zip(cell(tuple(map(Tensor, tensors))), tensors, strict=True):
        assert found.shape == expected.shape
        assert np.array_equal(found.asnumpy(), expected)
