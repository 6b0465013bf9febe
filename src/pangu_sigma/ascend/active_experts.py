"""Active experts of an Ascend rank as parameters of the network, and the copy of their weights from the store in host memory.

Auto-parallel cuts only the parameters that a network multiplies with, so the active experts are parameters here and not arguments.

Shape suffixes: N segments of all RRE layers, F ffn, H hidden; B, S, T and M as in model/loss.py, of all ranks of a stage.
"""

from __future__ import annotations

from dataclasses import replace

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer

from ascend_ops.fetch import FetchRows
from pangu_sigma.ascend.inputs import StepSettings
from pangu_sigma.config import Config
from pangu_sigma.ecss.store import HostStore
from pangu_sigma.ecss.tiers import ArraySpec, HostTier
from pangu_sigma.model.declare import Zero
from pangu_sigma.model.loss import NextTokenLoss
from pangu_sigma.model.pangu_sigma import tensor_spans
from pangu_sigma.parallel.communicators import OF_COPIES
from pangu_sigma.parallel.connect import Groups
from pangu_sigma.parallel.layout import dispatch_layout
from pangu_sigma.parallel.parameters import active_buffers


class ActiveExperts(nn.Cell):
    """Network of the Ascend step and its loss. The active experts of all ranks are its parameters, which each step overwrites.
    construct(rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS, *plans) -> loss scale · loss of each block [M]
        plans: for each name of `inputs.plan_arrays`, its arrays of all segments. Other inputs: as in `NextTokenLoss`.

    The loss scale is a parameter, because inputs of the network are cut into micro-batches, and has one axis, because MindSpore
    2.9 crashes on a network with a scalar parameter.
    """

    def __init__(self, config: Config, loss: NextTokenLoss):
        super().__init__()
        self.loss = loss
        self.scale = Parameter(Tensor([1.0], ms.float32), name="pass_scale", requires_grad=False)
        self.multiply = ops.Mul()
        self.active = ParameterTuple(_buffers(config))
        self.segments, self.dropless = len(config.model.routed), dispatch_layout(config, ascend=True) == "dropless"
        self.spans = tensor_spans(config.model, self.segments)

    def of_segments(self, numbers: list[int]) -> list[Parameter]:
        """Return the NPU's buffers of some segments: for each, one buffer for each tensor of its experts."""
        return [p for n in numbers for p in self.active[slice(*self.spans[n])]]

    def construct(self, rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS, *plans):
        order, inverse, ends = self.by_segment(plans)
        experts: tuple = ()
        for i in range(len(self.active)):
            experts += (self.active[i],)
        loss_M = self.loss(
            rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS, None, order, inverse, ends, *experts
        )
        return self.multiply(loss_M, self.scale)

    def by_segment(self, plans):
        """Group the plan arrays of `construct`: return order, inverse and ends (None unless dropless), tuples over segments."""
        order: tuple = ()
        inverse: tuple = ()
        ends: tuple = ()
        count, first_back = self.segments, 4 if self.dropless else 2
        for n in range(count):
            arrays = plans[n::count]
            order += (arrays[:first_back],)
            inverse += (arrays[first_back : first_back + 2],)
            ends += (arrays[-1],)
        return order, inverse, ends if self.dropless else None


class FetchExperts(nn.Cell):
    """Cell that copies the weights of a step's active experts from host memory to the NPU. The host writes the row numbers of
    these experts in its store into `StepSettings` before each step."""

    def __init__(self, store: HostStore, settings: StepSettings, buffers: list[Parameter]):
        """buffers: the NPU's buffers; for each segment of the store, one for each tensor of its experts."""
        super().__init__(auto_prefix=False)
        self.store, self.settings = store, settings
        self.buffers = ParameterTuple(buffers)
        self.fetch = nn.CellList([FetchRows(span.stop - span.start) for span in store.spans])

    def construct(self):
        for n in range(self.store.segments):
            tensors = self.store.spans[n]
            buffers = self.buffers[tensors]
            rows = self.fetch[n](self.store.weights[tensors], self.settings.active_rows[n], buffers)
            for i in range(len(buffers)):
                ops.assign(buffers[i], rows[i])


def _buffers(config: Config) -> list[Parameter]:
    arrays = (array for stage in range(config.parallel.stages) for array in active_buffers(config, stage))
    return [Parameter(initializer(Zero(), a.shape, getattr(ms, a.dtype)), name=a.name) for a in arrays]


class SumOverGroups(nn.Cell):
    """Sum of the gradients of common experts over groups: construct(grads) -> grads, those of other weights as they are. Each group
    has a copy of these experts, and equal gradients make equal updates."""

    def __init__(self, weights: list[Parameter], groups: Groups):
        """weights: the weights of the gradients, marked by `sharding.mark_parameters`."""
        super().__init__(auto_prefix=False)
        self.common = [weight.cut.copies > 1 for weight in weights]
        add = any(self.common)
        self.add = (
            ops.AllReduce(ops.ReduceOp.SUM, groups.name("groups")).add_prim_attr(OF_COPIES, True) if add else None
        )

    def construct(self, grads):
        if self.add is None:
            return grads
        summed: tuple = ()
        for i in range(len(grads)):
            summed += (self.add(grads[i]) if self.common[i] else grads[i],)
        return summed


class RankTier(HostTier):
    """Storage of an Ascend rank's experts in host memory. MindSpore allocates the memory to run a graph, not to compile one."""

    def __init__(self) -> None:
        self._made: dict[str, Parameter] = {}

    def parameter(self, spec: ArraySpec) -> Parameter:
        """Create the parameter of an array, of zeros until `fill` draws its initial values."""
        zeros = initializer(Zero(), spec.shape, getattr(ms, spec.dtype))
        parameter = Parameter(zeros, name=spec.key, requires_grad=False)
        parameter.weight_decays = spec.decay
        self._made[spec.key] = parameter
        return parameter

    def fill(self, specs: list[ArraySpec]) -> None:
        """Draw the initial values of the experts.

        specs: the expert arrays of all segments. Values of other stages are drawn and thrown away, so that an expert starts with
            the same values on any number of ranks.
        """
        for spec in specs:
            parameter = self._made.get(spec.key)
            if parameter is None:
                spec = replace(spec, shape=(0, *spec.shape[1:]), drawn=(False,) * len(spec.drawn))
            array = np.zeros(spec.shape, spec.dtype)
            for _ in spec.fill(array):
                pass
            if parameter is not None:
                parameter.set_data(Tensor.from_numpy(array))
