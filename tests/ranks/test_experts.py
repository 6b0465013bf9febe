"""Tokens of a group of ranks and of one of them; several processes train with it in test_ranks_train.py."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from pangu_sigma.ranks.experts import GatherTokens, SumTokens

pytestmark = pytest.mark.usefixtures("graph_mode")

PEERS, TOKENS, HIDDEN = 3, 4, 2


class Same(ms.nn.Cell):
    """An AllReduce to which the other ranks add zeros."""

    def construct(self, x):
        return x


class Weighted(ms.nn.Cell):
    """A scalar of which the gradient by the cell's result is `weight`."""

    def __init__(self, cell: ms.nn.Cell):
        super().__init__()
        self.cell = cell

    def construct(self, x, weight):
        return (self.cell(x) * weight).sum()


def cell_of(kind: type[ms.nn.Cell], peer: int) -> ms.nn.Cell:
    cell = kind("mccl_world_group", PEERS, peer)
    cell.all_reduce = Same()
    return cell


def gradient(cell: ms.nn.Cell, x: np.ndarray, dout: np.ndarray) -> np.ndarray:
    return ms.grad(Weighted(cell))(Tensor(x), Tensor(dout)).asnumpy()


def test_each_rank_adds_its_own_tokens_to_those_of_all_and_takes_its_own_of_the_sum():
    rng = np.random.default_rng(0)
    all_XH, dall_XH = (rng.normal(size=(PEERS * TOKENS, HIDDEN)).astype(np.float32) for _ in range(2))
    gathered, gradients = np.zeros_like(all_XH), np.zeros_like(all_XH)
    for peer, (own, down) in enumerate(zip(np.split(all_XH, PEERS), np.split(dall_XH, PEERS), strict=True)):
        gather, own_sum = cell_of(GatherTokens, peer), cell_of(SumTokens, peer)
        gathered += gather(Tensor(own)).asnumpy()
        assert np.array_equal(own_sum(Tensor(all_XH)).asnumpy(), own)
        assert np.array_equal(gradient(gather, own, dall_XH), down), "the way back of the gradient"
        gradients += gradient(own_sum, all_XH, down)
    assert np.array_equal(gathered, all_XH)
    assert np.array_equal(gradients, dall_XH)
