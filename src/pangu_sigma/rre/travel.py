"""All-to-all layout of an RRE layer: dispatch to experts on other ranks, and the combine.

Shape suffixes: T tokens of the rank, H hidden, P expert ranks of a group, A entries of the active list of each, C rows that a rank
sends for one of them; R = P·A·C.

    x_TH → rows_RH, by destination, entry, number    ExpertDispatch with order, -1 is a row of zeros
         → rows [A, P·C, H] of the rank's own experts, from all ranks of the group
         → FFN, P·C rows for every expert
         → the way back                              ExpertCombine with inverse, -1 is a token that keeps its residual

Only `Exchange` knows how rows travel. With one expert rank nothing travels and the layout is the same.
"""

from __future__ import annotations

from typing import NamedTuple

from mindspore import nn
from mindspore.ops import functional as F

from ascend_ops.expert_dispatch import ExpertCombine, ExpertDispatch
from ascend_ops.grouped_ffn import GroupedFFN
from pangu_sigma.rre.experts import Experts
from pangu_sigma.sections import Activation


class Exchange(NamedTuple):
    """The two cells that send rows to the ranks of their experts, and back.

    to_experts(rows_RH) -> [A, P·C, H]: of R rows sent, the C rows from each of P ranks that arrive for each of this rank's experts.
    to_tokens(rows [A, P·C, H]) -> rows_RH: each row at the rank and in the order that it came from.
    """

    to_experts: nn.Cell
    to_tokens: nn.Cell


def exchanged_experts(exchange: Exchange, ffn: nn.Cell) -> Experts:
    """Return the cells of an RRE layer in the all-to-all layout.

    exchange: cells that send rows between ranks. ffn: cell for the rows that they return, with the arguments of `GroupedFFN`.
    """
    return Experts(_Dispatch(exchange), ffn, _Combine(exchange))


def exchange(peers: int, entries: int, all_to_all: nn.Cell | None = None) -> Exchange:
    """Return the cells that exchange rows in a group of expert ranks.

    peers: number of these ranks, P. entries: length A of an active list. all_to_all: cell that exchanges [P, …]; None if P is 1.
    """
    return Exchange(_ToExperts(peers, entries, all_to_all), _ToTokens(peers, entries, all_to_all))


class _ToExperts(nn.Cell):
    def __init__(self, peers: int, entries: int, all_to_all: nn.Cell | None):
        super().__init__()
        self.peers, self.entries, self.all_to_all = peers, entries, all_to_all

    def construct(self, rows_RH):
        hidden = F.shape(rows_RH)[-1]
        rows = F.reshape(rows_RH, (self.peers, self.entries, -1, hidden))
        if self.all_to_all is not None:
            rows = self.all_to_all(rows)  # first axis: destination → source
        return F.reshape(F.transpose(rows, (1, 0, 2, 3)), (self.entries, -1, hidden))


class _ToTokens(nn.Cell):
    def __init__(self, peers: int, entries: int, all_to_all: nn.Cell | None):
        super().__init__()
        self.peers, self.entries, self.all_to_all = peers, entries, all_to_all

    def construct(self, rows):
        hidden = F.shape(rows)[-1]
        rows = F.transpose(F.reshape(rows, (self.entries, self.peers, -1, hidden)), (1, 0, 2, 3))
        if self.all_to_all is not None:
            rows = self.all_to_all(rows)  # first axis: source → destination
        return F.reshape(rows, (-1, hidden))


class _Dispatch(nn.Cell):
    def __init__(self, exchange: Exchange):
        super().__init__()
        self.gather, self.to_experts = ExpertDispatch(), exchange.to_experts

    def construct(self, x_TH, order_R, inverse_T):
        return self.to_experts(self.gather(x_TH, order_R, inverse_T))


class UniformFFN(nn.Cell):
    """Expert FFN by `GroupedFFN` for equally many rows of each expert: construct takes rows [A, P·C, H], C from each of P ranks,
    and returns their outputs in the same shape. offsets[a] must be a · P · C."""

    def __init__(self, activation: Activation):
        super().__init__()
        self.ffn = GroupedFFN(activation)

    def construct(self, rows, w1_AFH, b1_AF, w2_AFH, b2_AH, offsets_A1):
        flat = F.reshape(rows, (-1, F.shape(rows)[-1]))
        return F.reshape(self.ffn(flat, w1_AFH, b1_AF, w2_AFH, b2_AH, offsets_A1), F.shape(rows))


class _Combine(nn.Cell):
    def __init__(self, exchange: Exchange):
        super().__init__()
        self.gather, self.to_tokens = ExpertCombine(), exchange.to_tokens

    def construct(self, rows, inverse_T, order_R, residual_TH):
        return self.gather(self.to_tokens(rows), inverse_T, order_R, residual_TH)
