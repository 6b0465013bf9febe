"""The all-to-all of a training step on the CPU, which sends rows to experts on other ranks.

Shape suffix: P ranks of the group.
"""

from __future__ import annotations

from collections.abc import Callable

from mindspore import nn, ops
from mindspore.ops import functional as F

from pangu_sigma.config import Config
from pangu_sigma.ranks.connect import ConnectedRanks
from pangu_sigma.ranks.layout import Layout, active_entries
from pangu_sigma.ranks.ranks import Ranks
from pangu_sigma.rre.experts import Experts, grouped_experts
from pangu_sigma.rre.travel import UniformFFN, exchange, exchanged_experts
from pangu_sigma.sections import Activation, Segment


class AllToAll(nn.Cell):
    """All-to-all among the ranks of a group. construct(x [P, …]) -> [P, …], float32 or float16.

    Row q of x goes to rank q of the group; row q of the result comes from rank q. The gradient is the same exchange in reverse.
    """

    def __init__(self, group: str, peers: int, peer: int):
        """group: name of the communication group. peers: number of its ranks, P. peer: index of this rank in the group."""
        super().__init__()
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, group)
        self.before, self.after, self.peer = peer, peers - 1 - peer, peer

    def construct(self, x):
        return self._exchange(x)

    def bprop(self, x, out, dout):
        return (self._exchange(dout),)

    def _exchange(self, x):
        # everybody's rows, each rank's in its own row and zeros elsewhere: a sum with zeros is exact
        row = F.expand_dims(x, 0)
        rows: tuple = ()
        if self.before:
            rows += (ops.zeros((self.before, *x.shape), x.dtype),)
        rows += (row,)
        if self.after:
            rows += (ops.zeros((self.after, *x.shape), x.dtype),)
        return self.all_reduce(ops.concat(rows, 0))[:, self.peer]


def make_experts_for(config: Config, ranks: Ranks) -> Callable[[Activation, Segment], Experts]:
    """Return the function that makes the cells of a segment of an RRE layer from its activation and kind: cells that compute on
    this rank alone, or with several expert ranks cells that exchange rows among them."""
    if config.parallel.expert == 1:
        return grouped_experts
    assert isinstance(ranks, ConnectedRanks)
    peers = config.parallel.expert
    all_to_all = AllToAll(ranks.group("expert"), peers, Layout(config.parallel).coordinates(ranks.rank).expert)

    def exchanging(activation: Activation, kind: Segment) -> Experts:
        return exchanged_experts(exchange(peers, active_entries(config, kind), all_to_all), UniformFFN(activation))

    return exchanging
