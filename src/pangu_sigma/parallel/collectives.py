"""What ranks exchange inside a graph, on the CPU.

MindSpore's CPU has AllReduce for any group of ranks, AllGather for all ranks only, and no AlltoAll; so AllReduce does everything
here. Collectives of one graph must come in the same order on every rank: where no data leads from one to the next, `depend` does.

Shape suffix: P ranks of the group.
"""

from __future__ import annotations

from mindspore import nn, ops
from mindspore.ops import functional as F


class TensorSum(nn.Cell):
    """Sum of each of several tensors over a group of ranks: construct(tensors) -> tensors. They travel in pieces of several."""

    def __init__(self, group: str, shapes: list[tuple[int, ...]], piece_elements: int):
        """shapes: of the tensors, which have one dtype. piece_elements: most that travel together; 0: each by itself."""
        super().__init__()
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, group)
        self.sizes = [_elements(shape) for shape in shapes]
        self.pieces = _pieces(self.sizes, piece_elements)

    def construct(self, tensors):
        summed: tuple = ()
        for first, end in self.pieces:
            flat: tuple = ()
            for i in range(first, end):
                flat += (F.reshape(tensors[i], (-1,)),)
            piece = ops.concat(flat, 0) if len(flat) > 1 else flat[0]
            if summed:
                piece = ops.depend(piece, summed[-1])
            piece, at = self.all_reduce(piece), 0
            for i in range(first, end):
                summed += (F.reshape(piece[at : at + self.sizes[i]], tensors[i].shape),)
                at += self.sizes[i]
        return summed


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _pieces(sizes: list[int], most: int) -> list[tuple[int, int]]:
    """Neighbours that travel together: (first, end) of each piece."""
    pieces: list[tuple[int, int]] = []
    room = 0
    for i, size in enumerate(sizes):
        if pieces and size <= room:
            pieces[-1], room = (pieces[-1][0], i + 1), room - size
        else:
            pieces.append((i, i + 1))
            room = most - size
    return pieces
