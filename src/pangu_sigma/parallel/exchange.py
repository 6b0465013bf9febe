"""Rows of experts on other ranks: the all-to-all of an Ascend graph.

Shape suffixes: G groups, P expert ranks (Ps of the sender, Pd of the receiver), R data replicas, A active experts of a rank,
C capacity, H hidden.
"""

from __future__ import annotations

from mindspore import nn, ops
from mindspore.ops import functional as F

from ascend_ops.expert_dispatch import ExpertCombine, ExpertDispatch
from pangu_sigma.config import ParallelConfig
from pangu_sigma.model.experts import Experts


class AscendExchange(nn.Cell):
    """Two stages, because the ranks of a tensor group have the same rows: each sends its part of the hidden axis between hosts, and
    the parts are put together inside the host.

    The redistribution is what MindSpore makes of two transposes whose cuts differ (parallel/sharding.py): the first leaves the rows
    cut by sender, the second wants them cut by receiver.
    """

    def __init__(self, parallel: ParallelConfig, places: int):
        super().__init__()
        self.sizes = (parallel.groups, parallel.expert, parallel.data, places)
        self.pack, self.arrange = ops.Transpose(), ops.Transpose()
        self.unarrange, self.unpack = ops.Transpose(), ops.Transpose()

    def to_experts(self, rows_MH):
        groups, ranks, data, places = self.sizes
        hidden = F.shape(rows_MH)[-1]
        rows = F.reshape(rows_MH, (groups, ranks, data, ranks, places, -1, hidden))  # G Ps R Pd A C H
        rows = self.pack(rows, (0, 3, 1, 2, 4, 5, 6))  # G Pd Ps R A C H
        rows = self.arrange(rows, (0, 1, 4, 3, 2, 5, 6))  # G Pd A R Ps C H
        return F.reshape(rows, (groups * ranks * places, -1, hidden))

    def to_tokens(self, rows_ACH):
        groups, ranks, data, places = self.sizes
        hidden = F.shape(rows_ACH)[-1]
        rows = F.reshape(rows_ACH, (groups, ranks, places, data, ranks, -1, hidden))  # G Pd A R Ps C H
        rows = self.unarrange(rows, (0, 1, 4, 3, 2, 5, 6))  # G Pd Ps R A C H
        rows = self.unpack(rows, (0, 2, 3, 1, 4, 5, 6))  # G Ps R Pd A C H
        return F.reshape(rows, (-1, hidden))


class _Dispatch(nn.Cell):
    def __init__(self, exchange):
        super().__init__()
        self.dispatch, self.exchange = ExpertDispatch(), exchange

    def construct(self, x_TH, order_M, inverse_T):
        return self.exchange.to_experts(self.dispatch(x_TH, order_M, inverse_T))


class _Combine(nn.Cell):
    def __init__(self, exchange):
        super().__init__()
        self.combine, self.exchange = ExpertCombine(), exchange

    def construct(self, rows_ACH, inverse_T, order_M, residual_TH):
        return self.combine(self.exchange.to_tokens(rows_ACH), inverse_T, order_M, residual_TH)


def exchanged_experts(parallel: ParallelConfig, places: int, ffn: nn.Cell) -> Experts:
    """Dispatch, FFN and combine of an RRE layer. places: active experts of a rank."""
    return Experts(_Dispatch(AscendExchange(parallel, places)), ffn, _Combine(AscendExchange(parallel, places)))
