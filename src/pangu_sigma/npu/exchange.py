"""Compacted layout of an RRE layer in an Ascend graph (910A): dispatch and combine with a fixed number of rows for each expert.

The exchange has two stages, because the ranks of a tensor group have the same rows: each sends its columns of the hidden axis
between hosts, and the columns are put together inside the host. Neither stage is written here. MindSpore derives the first from
two transposes whose cuts differ (sharding.py): one leaves the rows cut by sender, the next wants them cut by receiver. It derives
the second from the operator after them, which wants the hidden axis whole.

Between the stages, on the columns of a rank, the rows of each expert are gathered without the padding. Each sender pads for its own
worst case, so together the padding is more than needed. Without it fewer rows are put together, multiplied and kept.

Shape suffixes: G groups, P expert ranks (Ps of the sender, Pd of the receiver), D data replicas, A active experts of a rank, C
capacity, H hidden; R = P·A·C rows that a rank sends, W rows that its experts multiply. All ranks together, as everywhere under
auto-parallel.
"""

from __future__ import annotations

from mindspore import nn, ops
from mindspore.ops import functional as F

from ascend_ops.expert_dispatch import ExpertCombine, ExpertDispatch, Gather
from pangu_sigma.rre.experts import Experts, PaddedFFN
from pangu_sigma.sections import Activation, ParallelConfig


def compacted_experts(parallel: ParallelConfig, entries: int, activation: Activation) -> Experts:
    """Return the three cells of an RRE layer on Ascend, dispatch, FFN and combine, for the layout `compacted`. entries: length A
    of a rank's active list."""
    return Experts(CompactedDispatch(parallel, entries), PaddedFFN(activation), CompactedCombine(parallel, entries))


class ColumnGather(Gather):
    """Gather of rows whose columns are divided among tensor ranks. Only its parallel strategy differs from that of `Gather`."""


class CompactedDispatch(nn.Cell):
    """Dispatch cell of an RRE layer on Ascend, compacted layout: sends the rows of tokens to the ranks of their experts."""

    def __init__(self, parallel: ParallelConfig, entries: int):
        super().__init__()
        self.sizes = (parallel.groups, parallel.expert, parallel.data, entries)
        self.send, self.compact = ExpertDispatch(), ColumnGather()
        self.pack, self.arrange, self.line_up = ops.Transpose(), ops.Transpose(), ops.Transpose()

    def construct(self, x_TH, order, inverse):
        """Return the rows for the experts of every rank [G·P·A, D·W/A, H], for G groups, P expert ranks and D data replicas. A rank
        sends R rows, and its experts multiply W rows. x_TH: rows of tokens. order, inverse: indices, (order_R, arrive_W) and
        (inverse_T, leave_R) of an `ExchangePlan`."""
        order_R, arrive_W = order
        inverse_T, leave_R = inverse
        groups, ranks, data, entries = self.sizes
        hidden = F.shape(x_TH)[-1]
        rows_RH = self.send(x_TH, order_R, inverse_T)
        # axes: groups, sending rank, data replica, receiving rank, entry of the active list, row of the entry, hidden
        rows = F.reshape(rows_RH, (groups, ranks, data, ranks, entries, -1, hidden))  # G Ps D Pd A C H
        rows = self.pack(rows, (0, 3, 1, 2, 4, 5, 6))  # G Pd Ps D A C H
        rows = self.arrange(rows, (0, 1, 3, 2, 4, 5, 6))  # G Pd D Ps A C H
        rows = self.compact(F.reshape(rows, (-1, hidden)), arrive_W, leave_R)
        rows = F.reshape(rows, (groups, ranks, data, entries, -1, hidden))
        rows = self.line_up(rows, (0, 1, 3, 2, 4, 5))  # G Pd A D W/A H
        return F.reshape(rows, (groups * ranks * entries, -1, hidden))


class CompactedCombine(nn.Cell):
    """Combine cell of an RRE layer on Ascend, compacted layout: sends the experts' outputs back to the ranks of their tokens, and
    adds the residual."""

    def __init__(self, parallel: ParallelConfig, entries: int):
        super().__init__()
        self.sizes = (parallel.groups, parallel.expert, parallel.data, entries)
        self.take, self.spread = ExpertCombine(), ColumnGather()
        self.separate, self.unarrange, self.unpack = ops.Transpose(), ops.Transpose(), ops.Transpose()

    def construct(self, rows, inverse, order, residual_TH):
        """Return residual + outputs of experts for every token [T, H]. rows: outputs of experts [G·P·A, D·W/A, H]. inverse, order:
        as `CompactedDispatch` takes them."""
        order_R, arrive_W = order
        inverse_T, leave_R = inverse
        groups, ranks, data, entries = self.sizes
        hidden = F.shape(rows)[-1]
        # axes as in `CompactedDispatch`, from the receiving rank (Pd) back to the sending one (Ps)
        rows = F.reshape(rows, (groups, ranks, entries, data, -1, hidden))
        rows = self.separate(rows, (0, 1, 3, 2, 4, 5))  # G Pd D A W/A H
        rows = self.spread(F.reshape(rows, (-1, hidden)), leave_R, arrive_W)
        rows = F.reshape(rows, (groups, ranks, data, ranks, entries, -1, hidden))  # G Pd D Ps A C H
        rows = self.unarrange(rows, (0, 1, 3, 2, 4, 5, 6))  # G Pd Ps D A C H
        rows = self.unpack(rows, (0, 2, 3, 1, 4, 5, 6))  # G Ps D Pd A C H
        return self.take(F.reshape(rows, (-1, hidden)), inverse_T, order_R, residual_TH)
