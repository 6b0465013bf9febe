"""Dropless layout of an RRE layer in an Ascend graph (910B and 910_93): dispatch, FFN and combine without padding between ranks.

    rows of a rank's tokens, its columns         sorted by receiver and expert
      → AlltoAllV in the expert group            a different number of rows for each rank; the host knows the numbers
      → rows of an expert brought together       the room is fixed, empty rows are zeros
      → AllGather in the tensor group            MindSpore's, between the cuts of two Morphs
      → GroupedMatmul, activation, GroupedMatmul the rows of each expert end at `ends`
      → AllReduce in the tensor group
      → and the way back

Auto-parallel cuts an axis into equal parts only, which AlltoAllV and GroupedMatmul do not have. A Morph is a function that it
treats as one operator with declared layouts, and inlines before it differentiates. Inside, every tensor is the slice of this
rank, and every collective is written here. The group list, where a rank's own experts end, cannot be cut from a common one.

An empty row belongs to the last expert and is all zeros, and so is its gradient; it changes no sum. That costs products of a few
per cent of the rows, and no value is ever read from uninitialised memory.

Shape suffixes: T tokens of a rank, H hidden, of which a tensor rank has h = H/tensor columns on the way, F ffn of a tensor rank, P
expert ranks, A active experts of a rank, W rows that its experts multiply.
"""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
from mindspore import nn, ops
from mindspore.ops import functional as F
from mindspore.ops.auto_generate import GroupedMatmul

from ascend_ops.expert_dispatch import Gather
from pangu_sigma.ranks.connect import Groups
from pangu_sigma.rre.experts import ActivatedFFN, Experts
from pangu_sigma.sections import Activation


def dropless_experts(groups: Groups, hidden: int, activation: Activation, cann: bool) -> Experts:
    """Return the three cells of an RRE layer on Ascend, dispatch, FFN and combine, for the layout `dropless`.

    groups: communication groups of this rank. hidden: hidden width H. cann: True to gather rows with CANN's operator, False with
    ours. In the arguments of the cells, `order` is (order_T, arrive_W, sent_P, taken_P) and `inverse` is (inverse_T, leave_W) of
    an `ExchangePlan`; `ends_A`, the row after the last row of each expert, replaces the offsets.
    """
    dispatch, combine = DroplessDispatch(groups, hidden, cann), DroplessCombine(groups, hidden, cann)
    return Experts(dispatch, DroplessFFN(groups, activation), combine)


def on_one_rank(cell: nn.Cell, shape: Callable) -> ops.Morph:
    """Wrap a cell as a Morph: a single operator for auto-parallel, in which the cell runs on the slices of one rank. The output has
    the first input's dtype.

    shape: function from the shapes of the inputs to the shape of the output, of all ranks' slices together.
    """
    return ops.Morph(cell.construct, shape, _like_first).add_prim_attr("self_define_shard", True)


def _shape_of_rows(x, send_order, send_back, out, arrived, arrival_order, *others):
    """Return the shape of the rows that `LocalExchange` returns, from the shapes of its inputs."""
    return [arrival_order[0], x[1]]


def _like_first(first, *others):
    """Return the shape, or the dtype, of the first input: that of the output."""
    return first


class DroplessDispatch(nn.Cell):
    """Dispatch cell of an RRE layer on Ascend, dropless layout: sends the rows of a rank's tokens to the ranks of their experts.
    construct(x_TH, (order_T, arrive_W, sent_P, taken_P), (inverse_T, leave_W)) -> rows_WH, the W rows that this rank's experts
    multiply. order: token of each row sorted by expert; inverse: row of each token. sent, taken: number of rows to, and from, each
    of P expert ranks. arrive: the row that arrived for each of the W; leave: its inverse."""

    def __init__(self, groups: Groups, hidden: int, cann: bool):
        super().__init__()
        self.local = LocalExchange(groups, hidden, cann)
        self.morph = on_one_rank(self.local, _shape_of_rows)

    def construct(self, x_TH, order, inverse):
        order_T, arrive_W, sent_P, taken_P = order
        inverse_T, leave_W = inverse
        return self.morph(x_TH, order_T, inverse_T, sent_P, taken_P, arrive_W, leave_W)


class DroplessCombine(nn.Cell):
    """Combine cell of an RRE layer on Ascend, dropless layout: sends the outputs of experts back to the ranks of their tokens, and
    adds the residual."""

    def __init__(self, groups: Groups, hidden: int, cann: bool):
        super().__init__()
        self.local = LocalExchange(groups, hidden, cann)
        self.morph = on_one_rank(self.local, _shape_of_rows)
        self.add = ops.Add()  # here, where columns meet whole rows once, and not at each reader of the sum

    def construct(self, rows_WH, inverse, order, residual_TH):
        """Return residual + outputs of experts for every token [T, H]. rows: outputs for the W rows that this rank's experts
        multiplied. inverse, order: the tuples of indices that `DroplessDispatch` takes."""
        order_T, arrive_W, sent_P, taken_P = order
        inverse_T, leave_W = inverse
        # the way of `DroplessDispatch` back: inverse indices, and the rows that came from a rank go to this rank
        return self.add(residual_TH, self.morph(rows_WH, leave_W, arrive_W, taken_P, sent_P, inverse_T, order_T))


class DroplessFFN(nn.Cell):
    """Expert FFN of an RRE layer on Ascend, dropless layout: construct(rows_WH, w1_AFH, b1_A1F, w2_AFH, b2_A1H, ends_A) -> outputs
    [W, H] of the W rows, which are sorted by expert. ends: the row after the last row of each expert. b2: None in a further
    segment, which takes an operator of its own, because an operator's input cannot be None."""

    def __init__(self, groups: Groups, activation: Activation):
        super().__init__()
        self.local = LocalFFN(groups, activation)
        self.morph, self.morph_further = (on_one_rank(self.local, _like_first) for _ in range(2))

    def construct(self, rows_WH, w1_AFH, b1_A1F, w2_AFH, b2_A1H, ends_A):
        if b2_A1H is None:
            return self.morph_further(rows_WH, w1_AFH, b1_A1F, w2_AFH, ends_A)
        return self.morph(rows_WH, w1_AFH, b1_A1F, w2_AFH, ends_A, b2_A1H)


class LocalExchange(nn.Cell):
    """The part of `DroplessDispatch` and of `DroplessCombine` on the slices of one rank, h of the H columns: puts its rows in the
    order of their receivers, exchanges them with the P ranks of the expert group, and puts the arrived rows in their new order."""

    def __init__(self, groups: Groups, hidden: int, cann: bool):
        """groups: communication groups of this rank. hidden: hidden width H. cann: True for CANN's gather."""
        super().__init__()
        self.sort, self.bring_together = Gather(cann), Gather(cann)
        self.travel = AllToAllV(groups, hidden) if groups.size("expert") > 1 else None  # else no row leaves the rank

    def construct(self, x, send_order, send_back, out_P, in_P, arrival_order, arrival_back):
        """Return the arrived rows in their new order [len(arrival_order), h]. out, in: number of rows to each rank of the group,
        and from each. An order gives the row that is gathered at each place, a negative number zeros; back: its inverse, for the
        gradient."""
        rows = self.sort(x, send_order, send_back)
        if self.travel is not None:
            rows = self.travel(rows, out_P, in_P)
        return self.bring_together(rows, arrival_order, arrival_back)


class LocalFFN(ActivatedFFN):
    """The part of `DroplessFFN` on the slices of weights of one rank. It sums its outputs over the tensor group, whose ranks divide
    F."""

    def __init__(self, groups: Groups, activation: Activation):
        super().__init__(activation)
        self.grouped = grouped_matmul()
        tensor = groups.size("tensor")
        # each tensor rank adds its share of the bias; for powers of two the sum is exact
        self.bias_share = 1.0 / tensor
        self.sum_of_parts = ops.AllReduce(ops.ReduceOp.SUM, groups.name("tensor")) if tensor > 1 else None

    def construct(self, rows_WH, w1_AFH, b1_A1F, w2_AFH, ends_A, b2_A1H=None):
        """Return the outputs [W, H] of W rows sorted by expert. ends: the row after the last row of each expert."""
        ends, is_own_WA = F.cast(ends_A, ms.int64), _expert_of_row(rows_WH, ends_A)
        b1_AF = F.reshape(b1_A1F, (-1, F.shape(b1_A1F)[-1]))
        inner_WF = self.product(rows_WH, F.transpose(w1_AFH, (0, 2, 1)), ends) + F.matmul(is_own_WA, b1_AF)
        out_WH = self.product(self.activated(inner_WF), w2_AFH, ends)
        if b2_A1H is not None:
            out_WH = out_WH + F.matmul(is_own_WA, F.reshape(b2_A1H, (-1, F.shape(b2_A1H)[-1]))) * self.bias_share
        return out_WH if self.sum_of_parts is None else self.sum_of_parts(out_WH)

    def product(self, x, w, ends):
        """Multiply the rows of x [W, in] by the matrices w of their experts [A, in, out]. ends: row after the last row of each
        expert. Return [W, out]."""
        # the five without a value: bias, scale, offset, and scale and offset of quantised weights
        return self.grouped([x], [w], None, None, None, None, None, ends)[0]


def grouped_matmul() -> ops.Primitive:
    """Return the GroupedMatmul operator: one tensor in and out (split_item=3), grouped along its rows (group_type=0)."""
    return GroupedMatmul(split_item=3, group_type=0)


class AllToAllV(nn.Cell):
    """All-to-all of rows among the P ranks of an expert group, with a different number of rows for each rank (AlltoAllV).
    construct(rows, out_P, in_P) -> the rows that arrive, in the order of their senders. out, in: number of rows that go to each
    rank, and that come from each rank. Only the first sum(out) rows are sent. The gradient goes the way back."""

    def __init__(self, groups: Groups, hidden: int):
        super().__init__()
        columns = hidden // groups.size("tensor")
        self.all_to_all = ops.AlltoAllV(groups.name("expert"), columns)
        self.to_host = ops.MoveTo().add_prim_attr("recompute", False)  # HCCL is told the lengths by the host

    def construct(self, rows, out_P, in_P):
        return self.exchange(rows, out_P, in_P)

    def bprop(self, rows, out_P, in_P, out, dout):
        return self.exchange(dout, in_P, out_P), F.zeros_like(out_P), F.zeros_like(in_P)

    def exchange(self, rows, out_P, in_P):
        """Send out_P rows to each rank, and return the rows that arrive, in_P from each. The graph does not know these numbers when
        it is compiled. AlltoAllV counts elements in units of a row's columns, so the rows are flat for it."""
        hidden = F.shape(rows)[-1]
        sizes_out = self.to_host(F.cast(out_P, ms.int64), "CPU", True)
        sizes_in = self.to_host(F.cast(in_P, ms.int64), "CPU", True)
        arrived = self.all_to_all(F.reshape(rows, (-1,)), sizes_out, sizes_in)
        return F.reshape(arrived, (-1, hidden))


def _expert_of_row(rows_WH, ends_A):
    """Return a matrix [W, A] with 1 where the row belongs to the expert, else 0. The product with the experts' biases [A, F] is the
    bias of each row, and the gradient of this product sums over the rows of an expert. ends: row after each expert's last row."""
    row_W1 = F.expand_dims(ops.arange(F.shape(rows_WH)[0]), 1)
    # 1 where the row lies before the expert's end; an expert's rows are before its end, but not before the end of the one before
    before_end_WA = F.cast(row_W1 < F.expand_dims(ends_A, 0), rows_WH.dtype)
    first_W1 = before_end_WA[:, :1]
    if F.shape(before_end_WA)[1] == 1:
        return first_W1
    return ops.concat((first_W1, before_end_WA[:, 1:] - before_end_WA[:, :-1]), 1)
