"""Tensors that are joined to be summed over ranks come back as they were."""

from __future__ import annotations

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from pangu_sigma.ranks.reduce import JoinedAllReduce, ReducedGradients

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
    for actual, expected in zip(cell(tuple(map(Tensor, tensors)), Tensor(0.0)), tensors, strict=True):
        assert actual.shape == expected.shape
        assert np.array_equal(actual.asnumpy(), 2 * expected)


@pytest.mark.parametrize(("data", "groups"), [(1, 1), (2, 2)])
def test_gradients_are_summed_over_the_ranks_that_store_the_same_and_their_squares_count_once(data, groups):
    """Of two ranks with the same gradients. The third segment does not learn."""
    config = SimpleNamespace(
        parallel=SimpleNamespace(data=data, groups=groups),
        model=SimpleNamespace(routed=["own", "common", "own"]),
        learns=lambda kind: True,
    )
    cell = ReducedGradients(config, SimpleNamespace(group=lambda *axes: "mccl_world_group"))
    for reduction in filter(None, (cell, cell.dense_over_ranks, cell.over_replicas, cell.over_groups)):
        reduction.all_reduce = Twice()
    arrays = [np.random.default_rng(n).random((n + 1, 2)).astype(np.float32) for n in range(6)]
    one, two, own, own_too, common, common_too = map(Tensor, arrays)
    dense, experts, squares, of_dense, of_experts = cell((one, two), ((own, own_too), (common, common_too), ()))
    expected = [
        2 * arrays[0],
        2 * arrays[1],
        *(data * a for a in arrays[2:4]),
        *(data * groups * a for a in arrays[4:]),
    ]
    for actual, sums in zip((*dense, *experts[0], *experts[1]), expected, strict=True):
        assert np.array_equal(actual.asnumpy(), sums)
    assert len(experts) == 3 and not experts[2]
    in_dense, in_own, in_common = (sum(np.square(a).sum() for a in expected[i : i + 2]) for i in (0, 2, 4))
    in_experts = 2 * (in_own + in_common / groups) / data
    actual = [each.asnumpy().item() for each in (squares, of_dense, of_experts)]
    assert actual == pytest.approx([in_dense + in_experts, in_dense, in_experts], rel=1e-6)
