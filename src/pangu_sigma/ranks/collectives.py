"""Sums over ranks (all-reduce) inside a graph, on the CPU.

MindSpore's CPU has AllReduce for any group of ranks, AllGather for all ranks only, and no AlltoAll; so AllReduce does everything
here. Collectives of one graph must come in the same order on every rank: where no data leads from one to the next, `depend` does.

Shape suffix: P ranks of the group.
"""

from __future__ import annotations

import math

from mindspore import nn, ops
from mindspore.ops import functional as F


class BucketedAllReduce(nn.Cell):
    """All-reduce (sum) of tensors over a group of ranks, adjacent tensors in one bucket: construct(tensors) -> tensors."""

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
