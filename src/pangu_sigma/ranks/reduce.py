"""Reduction of gradients over ranks. Two cells have one contract, so that the step does not depend on the number of ranks.

construct(dense, experts) -> (dense, experts, square sum, its dense part, its part of the experts): the reduced gradients that the
optimizers of this rank need, and the sum of the squares of all gradients of the run, each counted once. It has the same bits on
every rank, because clipping by it must keep dense parameters equal. experts: for each segment a tuple of gradients, () if its
experts do not learn. over_ranks(values, after) -> the sum of values over the ranks, taken after `after` is computed.
"""

from __future__ import annotations

from mindspore import nn, ops

from ascend_ops.adam import SquareSum, SquareSums
from pangu_sigma.config import Config
from pangu_sigma.ranks.connect import ConnectedRanks
from pangu_sigma.ranks.ranks import Ranks


class LocalGradients(nn.Cell):
    """Gradient reduction of a run of one process: as `ReducedGradients`, but there are no other ranks to sum over."""

    chained = False

    def __init__(self) -> None:
        super().__init__()
        self.square_sums = SquareSums()

    def construct(self, dense, experts):
        flat = joined(experts)
        sums, end = self.square_sums(dense + flat), 1 + len(dense)
        of_experts = ops.ReduceSum()(sums[end:], 0) if flat else 0.0 * sums[0]
        of_dense = ops.ReduceSum()(sums[1:end], 0) if dense else 0.0 * sums[0]
        return dense, experts, sums[0], of_dense, of_experts

    def over_ranks(self, values, after):
        return values


class ReducedGradients(nn.Cell):
    """Gradient reduction of a run of several ranks: dense gradients are summed over all ranks, those of experts over the ranks that
    store the same experts: replicas on the data axis, and for common experts all groups."""

    chained = True
    """True if micro-batches contain collectives, so that they must run one after another."""

    def __init__(self, config: Config, ranks: ConnectedRanks):
        super().__init__()
        self.replicas, self.groups = config.parallel.data, config.parallel.groups
        self.sparse = any(map(config.learns, config.model.routed))
        self.is_common = tuple(kind == "common" and self.groups > 1 for kind in config.model.routed)
        everybody = ranks.group("groups", "expert", "data", "tensor")
        self.dense_over_ranks = JoinedAllReduce(everybody)
        self.over_replicas = JoinedAllReduce(ranks.group("data")) if self.replicas > 1 and self.sparse else None
        self.over_groups = JoinedAllReduce(ranks.group("groups")) if any(self.is_common) else None
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, everybody)
        self.square_sum = SquareSum()

    def construct(self, dense, of_segments):
        dense = self.dense_over_ranks(dense, dense[0])
        squares = of_dense = self.square_sum(dense)
        # a zero like of_dense; and the result of the last collective, which the next one gets: all ranks keep one order
        of_experts, after = 0.0 * of_dense, dense[-1]
        if self.over_replicas is not None:
            experts = self.over_replicas(joined(of_segments), after)
            sizes: tuple = ()
            for of_segment in of_segments:
                sizes += (len(of_segment),)
            after, of_segments = experts[-1], parted(experts, sizes)
        reduced: tuple = ()
        own = ops.zeros_like(ops.reshape(of_dense, (1,)))
        for n in range(len(of_segments)):
            experts, copies = of_segments[n], 1.0
            if self.over_groups is not None and self.is_common[n] and len(experts) > 0:
                experts = self.over_groups(experts, after)
                after, copies = experts[-1], self.groups  # each group adds the same square sum below
            if len(experts) > 0:
                own = own + ops.reshape(self.square_sum(experts), (1,)) / copies
            reduced += (experts,)
        if self.sparse:
            # each replica of the data axis added the same square sum
            of_experts = ops.reshape(self.all_reduce(ops.depend(own, after)), ()) / self.replicas
            squares = of_dense + of_experts
        return dense, reduced, squares, of_dense, of_experts

    def over_ranks(self, values, after):
        return self.all_reduce(ops.depend(values, after))


def joined(of_segments):
    """Return the tensors of all segments as one tuple. Only here tensors of segments become flat:
    operators that read many tensors, and auto-parallel's parameters, have no other form."""
    tensors: tuple = ()
    for of_segment in of_segments:
        tensors += of_segment
    return tensors


def parted(tensors, sizes):
    """Return a tuple of tensors for each segment: the inverse of `joined`. sizes: their numbers."""
    of_segments: tuple = ()
    first = 0
    for size in sizes:
        of_segments += (tensors[first : first + size],)
        first += size
    return of_segments


def make_gradient_reduction(config: Config, ranks: Ranks) -> nn.Cell:
    """Return the gradient reduction for these ranks."""
    return ReducedGradients(config, ranks) if isinstance(ranks, ConnectedRanks) else LocalGradients()


class JoinedAllReduce(nn.Cell):
    """All-reduce (sum) of tensors of one dtype over a group of ranks, joined into one tensor, once `after` is computed:
    construct(tensors, after) -> tensors. Collectives of a graph must come in one order on all ranks: where no data leads from one
    to the next, `depend` does. (On CPUs MindSpore has AllReduce for any group of ranks, AllGather for all ranks, no AlltoAll.)"""

    def __init__(self, group: str):
        """group: name of the communication group."""
        super().__init__()
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, group)

    def construct(self, tensors, after):
        flat: tuple = ()
        for i in range(len(tensors)):
            flat += (ops.reshape(tensors[i], (-1,)),)
        total = self.all_reduce(ops.depend(ops.concat(flat, 0) if len(flat) > 1 else flat[0], after))
        summed: tuple = ()
        first = 0
        for i in range(len(tensors)):
            end = first + flat[i].shape[0]
            summed += (ops.reshape(total[first:end], tensors[i].shape),)
            first = end
        return summed
