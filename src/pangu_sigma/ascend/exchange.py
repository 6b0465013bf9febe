"""The exchange of rows with experts on other ranks in an Ascend graph. That of the CPU is in parallel/all_to_all.py.

It has two stages, because the ranks of a tensor group have the same rows: each sends its columns of the hidden axis between hosts,
and the columns are put together inside the host. Neither is written here. The first is what MindSpore makes of two transposes whose
cuts differ (sharding.py): one leaves the rows cut by sender, the next wants them cut by receiver. The second is what it makes of
the operator after them, which wants the hidden axis whole.

Shape suffixes: G groups, P expert ranks (Ps of the sender, Pd of the receiver), D data replicas, A active experts of a rank,
C capacity, H hidden; R = P·A·C rows of a rank. All ranks together, as everywhere under auto-parallel.
"""

from __future__ import annotations

from mindspore import nn, ops
from mindspore.ops import functional as F

from pangu_sigma.config import ParallelConfig
from pangu_sigma.rre.travel import Exchange


def ascend_exchange(parallel: ParallelConfig, entries: int) -> Exchange:
    """The exchange of a graph of all ranks. entries: number A of active experts of a rank."""
    return Exchange(ToExperts(parallel, entries), ToTokens(parallel, entries))


class ToExperts(nn.Cell):
    """Way of rows to the ranks of their experts: construct(rows_RH) -> [G·P·A, D·P·C, H]"""

    def __init__(self, parallel: ParallelConfig, entries: int):
        super().__init__()
        self.sizes = (parallel.groups, parallel.expert, parallel.data, entries)
        self.pack, self.arrange = ops.Transpose(), ops.Transpose()

    def construct(self, rows_RH):
        groups, ranks, data, entries = self.sizes
        hidden = F.shape(rows_RH)[-1]
        rows = F.reshape(rows_RH, (groups, ranks, data, ranks, entries, -1, hidden))  # G Ps D Pd A C H
        rows = self.pack(rows, (0, 3, 1, 2, 4, 5, 6))  # G Pd Ps D A C H
        rows = self.arrange(rows, (0, 1, 4, 3, 2, 5, 6))  # G Pd A D Ps C H
        return F.reshape(rows, (groups * ranks * entries, -1, hidden))


class ToTokens(nn.Cell):
    """Way of rows back to the ranks of their tokens: construct(rows [G·P·A, D·P·C, H]) -> rows_RH"""

    def __init__(self, parallel: ParallelConfig, entries: int):
        super().__init__()
        self.sizes = (parallel.groups, parallel.expert, parallel.data, entries)
        self.unarrange, self.unpack = ops.Transpose(), ops.Transpose()

    def construct(self, rows):
        groups, ranks, data, entries = self.sizes
        hidden = F.shape(rows)[-1]
        rows = F.reshape(rows, (groups, ranks, entries, data, ranks, -1, hidden))  # G Pd A D Ps C H
        rows = self.unarrange(rows, (0, 1, 4, 3, 2, 5, 6))  # G Pd Ps D A C H
        rows = self.unpack(rows, (0, 2, 3, 1, 4, 5, 6))  # G Ps D Pd A C H
        return F.reshape(rows, (-1, hidden))
