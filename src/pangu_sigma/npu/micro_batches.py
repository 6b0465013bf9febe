"""Gradient accumulation over the micro-batches of an update, which are concatenated in the inputs of a rank.

Without stages their gradients are added on the rank that computes them. With pipeline stages MindSpore cuts the network between
cells of different stages, sends hidden states forward and gradients back, and orders the passes so that a stage alternates between
the two (1F1B).

MindSpore requires the following in both cases: StridedSlice cuts the inputs, operators with a mark add the results, and every
weight has a parameter `accu_grads.<its name>` that is zero before the step.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, ParameterTuple, nn, ops

from pangu_sigma.config import Config
from pangu_sigma.npu.inputs import E_INPUT
from pangu_sigma.sections import ParallelConfig


class MicroBatches(nn.Cell):
    """Network of the Ascend step, run on each micro-batch: construct(*inputs) -> sum of the network's results. Inputs have one axis
    or two; the first is cut into micro-batches."""

    def __init__(self, network: nn.Cell, count: int, parallel: ParallelConfig):
        """network: cell that is run. count: number of micro-batches."""
        super().__init__(auto_prefix=False)
        self.network, self.count = network, count
        self.slices = tuple(_slices(count, parallel) for _ in range(count))
        # the attribute by which MindSpore's pass for pipelines, or for accumulation, finds the end of each micro-batch
        mark = "pipeline_end" if parallel.stages > 1 else "forward_end"
        self.add = tuple(ops.Add().add_prim_attr(mark, i) for i in range(count))

    def construct(self, *inputs):
        """Run the network on one micro-batch after another, and return the sum of its results."""
        total = self.network(*self.micro_batch(0, inputs))
        for i in range(1, self.count):
            total = self.add[i](total, self.network(*self.micro_batch(i, inputs)))
        return total

    def micro_batch(self, i, inputs):
        """Return the inputs of micro-batch number i: a slice of the first axis of each input, which has one axis or two."""
        slices: tuple = ()
        for x in inputs:
            rows = x.shape[0] // self.count
            begin, end = (i * rows, 0), ((i + 1) * rows, x.shape[-1])  # of two axes; the first of both for one axis
            slices += (self.slices[i][x.ndim - 1](x, begin[: x.ndim], end[: x.ndim], (1, 1)[: x.ndim]),)
        return slices


class GradientAccumulation(nn.Cell):
    """Loss and gradients of the Ascend step over all micro-batches of an update.
    construct(*inputs of the step) -> (scaled loss of each block, gradients of this stage's weights, gradients of other stages'
    weights, gradient of the rows of all tokens, () without rows)"""

    def __init__(self, network: nn.Cell, weights: list[Parameter], received: list[Parameter], config: Config):
        """network: cell that returns the scaled loss. weights: the weights that this rank keeps. received: weights of another stage
        that this rank reads, and whose gradients it computes."""
        super().__init__(auto_prefix=False)  # accumulators are named after their weights
        self.own_count, micro_batches = len(weights), config.train.accumulation
        all_weights = ParameterTuple([*weights, *received])
        forward = network if micro_batches == 1 else MicroBatches(network, micro_batches, config.parallel)
        self.has_rows = bool(config.model.rows)
        self.loss_and_grads = ms.value_and_grad(forward, E_INPUT if self.has_rows else None, weights=all_weights)
        # in the dtypes of the weights; MindSpore finds them by the weights' names, which must be final
        self.accumulators = None if micro_batches == 1 else all_weights.clone("accu_grads", "zeros")
        for accumulator in self.accumulators or ():
            accumulator.requires_grad = False
        self.map = ops.HyperMap()

    def construct(self, *inputs):
        scaled_M, grads = self.loss_and_grads(*inputs)
        row_grads, weight_grads = grads if self.has_rows else ((), grads)
        return scaled_M, weight_grads[: self.own_count], weight_grads[self.own_count :], row_grads

    def clear(self, applied):
        """Reset the gradient accumulators to zero for the next step, once `applied`, 0.0 or 1.0, has been computed. Return a value
        that depends on the reset."""
        if self.accumulators is None:
            return applied
        always_true = applied >= 0.0
        return self.map(ops.partial(_clear, always_true), self.accumulators)


def _clear(always_true, accumulator):
    """Set an accumulator to zero by a mask that is True everywhere. always_true: tensor of bool whose value MindSpore does not
    know. It would make a constant of zeros_like(accumulator), and keep as much memory again for all accumulators."""
    return ops.assign(accumulator, ops.masked_fill(accumulator, always_true, 0.0))


def _slices(count: int, parallel: ParallelConfig) -> tuple[ops.Primitive, ops.Primitive]:
    """Return the operators that cut a micro-batch out of an input of one axis, and of two axes. count: number of micro-batches.

    Their attributes make every rank cut its own rows; without them MindSpore would gather the rows of all ranks first. MindSpore's
    pass for pipelines reads other attributes than its pass for gradient accumulation."""
    data_ranks, operators = parallel.stage_ranks // parallel.tensor, []
    for strategy in ((data_ranks,), (data_ranks, 1)):  # number of slices along each axis of the input
        cut = ops.StridedSlice()
        if parallel.stages > 1:
            cut.add_prim_attr("out_shard_size", data_ranks)  # the pass divides the cut itself
        else:
            cut.add_prim_attr("grad_accu_num", count).add_prim_attr("skip_redistribution", True)
            if parallel.ranks > 1:
                cut.shard((strategy,))
        operators.append(cut)
    return operators[0], operators[1]
