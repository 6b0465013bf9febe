"""Active experts of an Ascend rank: parameters of the network that hold nothing, and their weights, which the host gives as values.

Auto-parallel sums and accumulates gradients of parameters alone, so the active experts are parameters here. MindSpore 2.9 may read
a parameter of the network before the step has written it, so their weights are never written into them: an operator on the host
gives the weights as values, and its gradients are those of the parameters. The host's store is in no graph.

Shape suffixes: N segments of all RRE layers, F ffn, H hidden; B, S, T and M as in model/pangu_sigma.py, of all ranks of a stage.
"""

from __future__ import annotations

from dataclasses import replace

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer

from ascend_ops.adam_worker import AdamWorker, FetchStored
from pangu_sigma.config import Config
from pangu_sigma.ecss.store import HostStore
from pangu_sigma.ecss.tiers import ArraySpec, UninitializedTier
from pangu_sigma.model.arrays import expert_shapes
from pangu_sigma.model.declare import Zero
from pangu_sigma.model.pangu_sigma import FFN_TENSORS, NextTokenLoss
from pangu_sigma.npu.communicators import OF_COPIES
from pangu_sigma.npu.cuts import active_buffers, summed_alone
from pangu_sigma.npu.inputs import StepSettings
from pangu_sigma.npu.rows import dispatch_layout
from pangu_sigma.ranks.connect import Groups
from pangu_sigma.ranks.reduce import parted


class FetchExperts(nn.Cell):
    """Cell that gives the weights of the rank's active experts: construct(active) -> tensors of their shapes and dtypes
    active: the network's parameters for them, which get the gradients: for each segment a tuple, as of the result. The host writes
    the row numbers of these experts in its store into `StepSettings` before each step."""

    def __init__(self, config: Config, store: HostStore, settings: StepSettings, worker: AdamWorker):
        """worker: that of the store's updates, which has its arrays."""
        super().__init__()
        sizes = [len(experts.weights) for experts in store.segments]
        self.segments = nn.CellList([FetchStored(worker, n, size) for n, size in enumerate(sizes)])
        # the standard operators that MindSpore may need: the host adds 1.0 to the parameters, which nobody reads
        self.adds = summed_alone(config)
        self.w1, self.b1, self.w2, self.b2 = (ops.Add() for _ in FFN_TENSORS)
        for add in (self.w1, self.b1, self.w2, self.b2):
            add.set_device("CPU")
        # a plain tuple: as parameters of the network MindSpore would rename them
        self.active_rows = tuple(settings.active_rows)
        self.first = Tensor(np.zeros(1, np.float32))

    def construct(self, active):
        weights: tuple = ()
        token = self.first
        for n in range(len(self.segments)):
            like = active[n]
            if self.adds:
                added: tuple = (self.w1(like[0], 1.0), self.b1(like[1], 1.0), self.w2(like[2], 1.0))
                if len(like) == len(FFN_TENSORS):
                    added += (self.b2(like[3], 1.0),)
                like = added
            found = self.segments[n](self.active_rows[n], like, token)
            weights += (found[:-1],)
            token = found[len(found) - 1]  # MindSpore's parallel passes find no shape at an index of -1
        return weights


class ActiveExperts(nn.Cell):
    """Network of the Ascend step and its loss. The active experts of all ranks are its parameters; nobody reads their values.
    construct(rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS, *others) -> loss scale · loss of each block [M]
        others: e_TH, if the model has rows; then for each name of `inputs.plan_arrays` its arrays of all segments: auto-parallel
        takes a flat list of inputs. Other inputs: as in `NextTokenLoss`.

    The loss scale is a parameter, because inputs of the network are cut into micro-batches, and has one axis, because MindSpore
    2.9 crashes on a network with a scalar parameter. The step writes it for the next one, behind all that reads it. It is a copy,
    because it belongs to the last stage, and all stages read the loss scale.
    """

    def __init__(self, config: Config, loss: NextTokenLoss, fetch: FetchExperts, own: list[int]):
        """fetch: cell that gives the weights of the rank's own active experts. own: numbers of their segments."""
        super().__init__()
        self.loss, self.fetch = loss, fetch
        self.scale = Parameter(Tensor([1.0], ms.float32), name="pass_scale", requires_grad=False)
        self.multiply = ops.Mul()
        self.active = ParameterTuple(_buffers(config))
        self.segments, self.dropless = len(config.model.routed), dispatch_layout(config) == "dropless"
        self.has_rows = bool(config.model.rows)
        of_layer = [len(expert_shapes(config.model, s)) for s in range(len(config.model.segments))]
        self.sizes = tuple(of_layer * config.model.rre_layers)
        self.begin, self.end = (own[0], own[-1] + 1) if own else (0, 0)

    def own(self) -> list[Parameter]:
        """Return the parameters of the rank's own segments."""
        return [p for of_segment in parted(tuple(self.active), self.sizes)[self.begin : self.end] for p in of_segment]

    def construct(self, rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS, *others):
        e_TH, plans = (others[0], others[1:]) if self.has_rows else ((), others)
        order, inverse, ends = self.by_segment(plans)
        active: tuple = ()
        for i in range(len(self.active)):
            active += (self.active[i],)
        active = parted(active, self.sizes)
        # experts of other stages stay parameters: MindSpore removes all that reads them
        experts = active[: self.begin] + self.fetch(active[self.begin : self.end]) + active[self.end :]
        batch = (rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS)
        loss_M = self.loss(*batch, None, order, inverse, ends, e_TH, experts)
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


class RankTier(UninitializedTier):
    """Storage of an Ascend rank's experts in host memory: zeros, which take no memory, until `fill` draws initial values."""

    def __init__(self) -> None:
        self._made: dict[str, np.ndarray] = {}

    def parameter(self, spec: ArraySpec) -> Parameter:
        """Create the parameter of an array, which only checkpoints use: the graph has none of the store."""
        parameter = super().parameter(spec)
        self._made[spec.key] = parameter.asnumpy()
        return parameter

    def fill(self, specs: list[ArraySpec]) -> None:
        """Draw the initial values of the experts.

        specs: the expert arrays of all segments. Values of other stages are drawn and thrown away, so that an expert starts with
            the same values on any number of ranks.
        """
        for spec in specs:
            array = self._made.get(spec.key)
            if array is None:
                spec = replace(spec, shape=(0, *spec.shape[1:]), drawn=(False,) * len(spec.drawn))
                array = np.zeros(spec.shape, spec.dtype)
            for _ in spec.fill(array):
                pass
