"""Experts of a layer on several CPU ranks: a group of ranks brings its tokens together, and sums what its experts make of them.

    x_TH → x_XH, the tokens of all ranks of the group
         → rows of this rank's experts → FFN → combine, as on one rank; zeros for tokens whose expert another rank stores
         → sum over the ranks, of which each takes its own T tokens

In each segment one rank has the expert of a token, so one summand is not zero, and the sum is exact. Nothing has a limit of rows.

Shape suffixes: T tokens of a rank, P expert ranks of a group, X = P·T tokens of all of them, in the order of the ranks, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable

from mindspore import nn, ops
from mindspore.ops import functional as F

from ascend_ops.expert_dispatch import ExpertCombine, ExpertDispatch
from ascend_ops.grouped_ffn import GroupedFFN
from pangu_sigma.config import Config
from pangu_sigma.ranks.connect import ConnectedRanks
from pangu_sigma.ranks.layout import Layout
from pangu_sigma.ranks.ranks import Ranks
from pangu_sigma.rre.experts import Experts, grouped_experts
from pangu_sigma.sections import Activation, Segment


class _Group(nn.Cell):
    """Base of two cells that communicate in a group of ranks; `gather_rows` and `own_sum` are each the gradient of the other."""

    def __init__(self, group: str, peers: int, peer: int):
        """group: name of the communication group. peers: number of its ranks, P. peer: index of this rank in the group."""
        super().__init__()
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, group)
        self.peer, self.peers = peer, peers

    def gather_rows(self, x_TH):
        """Return the rows of all ranks of the group, in the order of the ranks, [X, H]. x_TH: this rank's."""
        # a sum of each rank's rows and zeros for the others: MindSpore's CPU gathers among all ranks only, and this sum is exact
        zeros_TH = ops.zeros(F.shape(x_TH), x_TH.dtype)
        rows: tuple = ()
        for peer in range(self.peers):
            rows += (x_TH if peer == self.peer else zeros_TH,)
        return self.all_reduce(ops.concat(rows, 0))

    def own_sum(self, x_XH):
        """Sum x_XH over the ranks of the group, and return the rows of this rank's own tokens, [T, H]."""
        tokens = F.shape(x_XH)[0] // self.peers
        return self.all_reduce(x_XH)[self.peer * tokens : (self.peer + 1) * tokens]


class GatherTokens(_Group):
    """Tokens of all ranks of a group: construct(x_TH) -> x_XH, on every rank. float32 or float16."""

    def construct(self, x_TH):
        return self.gather_rows(x_TH)

    def bprop(self, x_TH, out, dout):
        return (self.own_sum(dout),)


class SumTokens(_Group):
    """Sum over the ranks of a group, of which each rank gets the rows of its own tokens: construct(x_XH) -> x_TH. float32 or
    float16."""

    def construct(self, x_XH):
        return self.own_sum(x_XH)

    def bprop(self, x_XH, out, dout):
        return (self.gather_rows(dout),)


def make_experts_for(config: Config, ranks: Ranks) -> Callable[[Activation, Segment], Experts]:
    """Return the function that makes the cells of a segment of an RRE layer from its activation and kind. The cells compute the
    tokens of this rank alone or, with parallel.expert > 1, the tokens of all ranks of its expert group."""
    peers = config.parallel.expert
    if peers == 1:
        return grouped_experts
    assert isinstance(ranks, ConnectedRanks)
    group, peer = ranks.group("expert"), Layout(config.parallel).coordinates(ranks.rank).expert
    gather, own_sum = GatherTokens(group, peers, peer), SumTokens(group, peers, peer)

    def group_experts(activation: Activation, kind: Segment) -> Experts:
        return Experts(_Dispatch(gather), GroupedFFN(activation), _Combine(own_sum))

    return group_experts


class _Dispatch(nn.Cell):
    """Dispatch of the tokens of all ranks of a group to this rank's experts."""

    def __init__(self, gather: nn.Cell):
        super().__init__()
        self.gather, self.dispatch = gather, ExpertDispatch()

    def construct(self, x_TH, order_X, inverse_X):
        return self.dispatch(self.gather(x_TH), order_X, inverse_X)


class _Combine(nn.Cell):
    """Combination of the experts' outputs, summed over the ranks of a group."""

    def __init__(self, own_sum: nn.Cell):
        super().__init__()
        self.combine, self.own_sum = ExpertCombine(), own_sum

    def construct(self, rows_XH, inverse_X, order_X, residual_TH):
        return residual_TH + self.own_sum(self.combine(rows_XH, inverse_X, order_X))
