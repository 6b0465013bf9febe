"""Reduction of gradients over ranks. Two cells have one contract, so that the step does not depend on the number of ranks.

construct(dense, experts) -> (dense, experts, square sum, its dense part, its part of the experts): the reduced gradients that the
optimizers of this rank need, and the sum of the squares of all gradients of the run, each counted once. It has the same bits on
every rank, because clipping by it must keep dense parameters equal. experts: for each segment a tuple of gradients, () if its
experts do not learn. over_ranks(values, after) -> the sum of values over the ranks, taken after `after` is computed.
"""

from __future__ import annotations

import math

from mindspore import nn, ops
from mindspore.ops import functional as F

from ascend_ops.adam import SquareSum, SquareSums
from pangu_sigma.config import Config
from pangu_sigma.ranks.connect import ConnectedRanks
from pangu_sigma.ranks.ranks import Ranks

Shapes = list[tuple[int, ...]]


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

    def __init__(self, config: Config, ranks: ConnectedRanks, dense: Shapes, of_segments: list[Shapes]):
        """dense, of_segments: shapes of the gradients of dense parameters, and of experts of each segment."""
        super().__init__()
        element = 2 if config.train.compute_dtype == "float16" else 4
        bucket, replicas, self.groups = config.parallel.fusion_mib << 20, config.parallel.data, config.parallel.groups
        kinds = [kind for kind, shapes in zip(config.model.routed, of_segments, strict=True) for _ in shapes]
        experts = [shape for shapes in of_segments for shape in shapes]
        self.common = [i for i, kind in enumerate(kinds) if kind == "common" and self.groups > 1]
        self.own = [i for i in range(len(experts)) if i not in self.common]
        shapes = [experts[i] for i in self.common]
        self.over_groups = BucketedAllReduce(ranks.group("groups"), shapes, bucket // element) if self.common else None
        everybody = ranks.group("groups", "expert", "data", "tensor")
        self.dense_over_ranks = BucketedAllReduce(everybody, dense, bucket // 4)
        self.over_replicas = (
            BucketedAllReduce(ranks.group("data"), experts, bucket // element) if replicas > 1 else None
        )
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, everybody)
        self.square_sum = SquareSum()
        self.sparse, self.replicas, self.sizes = bool(experts), replicas, tuple(map(len, of_segments))

    def construct(self, dense, of_segments):
        dense, experts = self.dense_over_ranks(dense), joined(of_segments)
        squares = of_dense = self.square_sum(dense)
        of_experts = 0.0 * of_dense
        if self.sparse:
            if self.over_replicas is not None:
                experts = self.over_replicas((ops.depend(experts[0], dense[-1]), *experts[1:]))
            experts = self.summed_over_groups(experts, dense[-1])
            own = ops.depend(ops.reshape(self.square_sum(picked(experts, self.own)), (1,)), dense[-1])
            if self.common:  # each group has the same sums, which count once
                own = own + ops.reshape(self.square_sum(picked(experts, self.common)), (1,)) / self.groups
            of_experts = ops.reshape(self.all_reduce(own), ()) / self.replicas
            squares = of_dense + of_experts
        return dense, parted(experts, self.sizes), squares, of_dense, of_experts

    def summed_over_groups(self, experts, after):
        """Return the experts' gradients, those of common experts summed over groups once `after` and all of them are computed."""
        if self.over_groups is None:
            return experts
        first = ops.depend(experts[self.common[0]], (after, experts))
        common = self.over_groups((first, *picked(experts, self.common[1:])))
        summed: tuple = ()
        for i in range(len(experts)):
            summed += (common[self.common.index(i)] if i in self.common else experts[i],)
        return summed

    def over_ranks(self, values, after):
        return self.all_reduce(ops.depend(values, after))


def picked(tensors, numbers):
    """Return the tensors with these numbers, a tuple."""
    found: tuple = ()
    for i in numbers:
        found += (tensors[i],)
    return found


def joined(of_segments):
    """Return the tensors of all segments as one tuple. Only here tensors of segments become flat:
    operators that read many tensors, buckets, and auto-parallel's parameters have no other form."""
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


def make_gradient_reduction(config: Config, ranks: Ranks, dense: Shapes, of_segments: list[Shapes]) -> nn.Cell:
    """Return the gradient reduction for these ranks. dense, of_segments: as in `ReducedGradients`."""
    if not isinstance(ranks, ConnectedRanks):
        return LocalGradients()
    return ReducedGradients(config, ranks, dense, of_segments)


class BucketedAllReduce(nn.Cell):
    """All-reduce (sum) of tensors over a group of ranks, adjacent tensors in one bucket: construct(tensors) -> tensors. Collectives
    of a graph must come in one order on all ranks: where no data leads from one to the next, `depend` does. (MindSpore's CPU has
    AllReduce for any group of ranks, AllGather for all ranks only, and no AlltoAll.)"""

    def __init__(self, group: str, shapes: list[tuple[int, ...]], bucket_elements: int):
        """group: name of the communication group. shapes: shapes of the tensors, which have one dtype.

        bucket_elements: largest number of elements of a bucket; 0 to give each tensor a bucket.
        """
        super().__init__()
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, group)
        self.sizes = [math.prod(shape) for shape in shapes]
        self.buckets = _buckets(self.sizes, bucket_elements)

    def construct(self, tensors):
        summed: tuple = ()
        for first, end in self.buckets:
            flat: tuple = ()
            for i in range(first, end):
                flat += (F.reshape(tensors[i], (-1,)),)
            bucket = ops.concat(flat, 0) if len(flat) > 1 else flat[0]
            if summed:
                bucket = ops.depend(bucket, summed[-1])
            bucket, at = self.all_reduce(bucket), 0
            for i in range(first, end):
                summed += (F.reshape(bucket[at : at + self.sizes[i]], tensors[i].shape),)
                at += self.sizes[i]
        return summed


def _buckets(sizes: list[int], most: int) -> list[tuple[int, int]]:
    """Return (first, end) of each bucket: neighbours that are summed together, with at most `most` elements if they are several."""
    buckets: list[tuple[int, int]] = []
    room = 0
    for i, size in enumerate(sizes):
        if buckets and size <= room:
            buckets[-1], room = (buckets[-1][0], i + 1), room - size
        else:
            buckets.append((i, i + 1))
            room = most - size
    return buckets
