"""Reduction of gradients over ranks. Two cells have the same methods, so that the step does not depend on the number of ranks.

The sum of squares, from which the norm follows, has the same bits on every rank: clipping by the norm must keep dense parameters
equal.
"""

from __future__ import annotations

from mindspore import nn, ops

from ascend_ops.adam import SquareSum, SquareSums
from pangu_sigma.config import Config
from pangu_sigma.ranks.connect import ConnectedRanks
from pangu_sigma.ranks.ranks import Ranks


class LocalGradients(nn.Cell):
    """Gradient reduction of a run of one process, without other ranks to sum over."""

    chained = False  # there is no collective to keep in order

    def __init__(self) -> None:
        super().__init__()
        self.square_sums = SquareSums()

    def construct(self, dense, experts):
        """Return both gradients unchanged, and the sum of all squares, of dense ones, and of the experts'. dense: tuple of
        tensors. experts: such a tuple for each segment."""
        flat_experts = flatten_segments(experts)
        # `sums` are of the squares of all gradients, then of each tensor's; 0.0 * sums[0] is a zero of the same type
        sums, dense_end = self.square_sums(dense + flat_experts), 1 + len(dense)
        expert_sum = ops.ReduceSum()(sums[dense_end:], 0) if flat_experts else 0.0 * sums[0]
        dense_sum = ops.ReduceSum()(sums[1:dense_end], 0) if dense else 0.0 * sums[0]
        return dense, experts, sums[0], dense_sum, expert_sum

    def over_ranks(self, values, after):
        return values


class ReducedGradients(nn.Cell):
    """Gradient reduction of a run of several ranks. Dense gradients are summed over all ranks; gradients of experts over the ranks
    that store the same experts: replicas on the data axis, and for common experts all groups."""

    chained = True  # micro-batches contain collectives, so they must run one after another

    def __init__(self, config: Config, ranks: ConnectedRanks):
        super().__init__()
        self.replicas, self.groups = config.parallel.data, config.parallel.groups
        self.experts_learn = any(map(config.learns, config.model.routed))
        self.is_common = tuple(kind == "common" and self.groups > 1 for kind in config.model.routed)
        all_ranks = ranks.group("groups", "expert", "data", "tensor")
        self.dense_over_ranks = JoinedAllReduce(all_ranks)
        self.over_replicas = JoinedAllReduce(ranks.group("data")) if self.replicas > 1 and self.experts_learn else None
        self.over_groups = JoinedAllReduce(ranks.group("groups")) if any(self.is_common) else None
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, all_ranks)
        self.square_sum = SquareSum()

    def construct(self, dense, experts_of_segments):
        """Return the summed gradients that this rank's optimizers need, of dense parameters and experts, and the sum of the squares
        of all gradients of the run, each counted once: in all, of dense ones, and of experts. dense: tuple of tensors.
        experts_of_segments: such a tuple for each segment, () if its experts do not learn."""
        dense = self.dense_over_ranks(dense, dense[0])
        squares = dense_squares = self.square_sum(dense)
        expert_squares = 0.0 * dense_squares  # a zero of the same type
        after = dense[-1]  # result of the last collective, on which the next one depends: all ranks keep one order
        if self.over_replicas is not None:
            experts = self.over_replicas(flatten_segments(experts_of_segments), after)
            sizes: tuple = ()
            for segment_experts in experts_of_segments:
                sizes += (len(segment_experts),)
            after, experts_of_segments = experts[-1], split_segments(experts, sizes)
        reduced_experts: tuple = ()
        own_squares = ops.zeros_like(ops.reshape(dense_squares, (1,)))
        for n in range(len(experts_of_segments)):
            experts, copies = experts_of_segments[n], 1.0
            if self.over_groups is not None and self.is_common[n] and len(experts) > 0:
                experts = self.over_groups(experts, after)
                after, copies = experts[-1], self.groups  # each group adds the same square sum below
            if len(experts) > 0:
                own_squares = own_squares + ops.reshape(self.square_sum(experts), (1,)) / copies
            reduced_experts += (experts,)
        if self.experts_learn:
            # each replica of the data axis added the same square sum
            expert_squares = ops.reshape(self.all_reduce(ops.depend(own_squares, after)), ()) / self.replicas
            squares = dense_squares + expert_squares
        return dense, reduced_experts, squares, dense_squares, expert_squares

    def over_ranks(self, values, after):
        """Return the sum of values over all ranks, taken after `after` is computed."""
        return self.all_reduce(ops.depend(values, after))


def flatten_segments(segments):
    """Return the tensors of all segments as one tuple, the form of operators that read many tensors and of auto-parallel's
    parameters. segments: a tuple of tensors for each segment."""
    tensors: tuple = ()
    for segment in segments:
        tensors += segment
    return tensors


def split_segments(tensors, sizes):
    """Return a tuple of tensors for each segment: the inverse of `flatten_segments`. sizes: number of tensors of each segment."""
    segments: tuple = ()
    first = 0
    for size in sizes:
        segments += (tensors[first : first + size],)
        first += size
    return segments


def make_gradient_reduction(config: Config, ranks: Ranks) -> nn.Cell:
    """Return the gradient reduction for these ranks."""
    return ReducedGradients(config, ranks) if isinstance(ranks, ConnectedRanks) else LocalGradients()


class JoinedAllReduce(nn.Cell):
    """All-reduce (sum) of tensors of one dtype over a group of ranks. Collectives of a graph must come in one order on all ranks:
    where no data leads from one to the next, `depend` does. (On CPUs MindSpore has AllReduce for any group of ranks, AllGather for
    all ranks, no AlltoAll.)"""

    def __init__(self, group: str):
        """group: name of the communication group."""
        super().__init__()
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, group)

    def construct(self, tensors, after):
        """Return the sums of the tensors over the ranks, reduced as one joined tensor once the tensor `after` is computed."""
        flat: tuple = ()
        for tensor in tensors:
            flat += (ops.reshape(tensor, (-1,)),)
        total = self.all_reduce(ops.depend(ops.concat(flat, 0) if len(flat) > 1 else flat[0], after))
        sums: tuple = ()
        first = 0
        for i in range(len(tensors)):
            sums += (ops.reshape(total[first : first + flat[i].shape[0]], tensors[i].shape),)
            first += flat[i].shape[0]  # a constant of the graph, as `size` may not be
        return sums
