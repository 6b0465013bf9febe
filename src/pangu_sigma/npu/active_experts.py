"""Active experts of an Ascend rank: placeholder parameters of the network, and their weights, which the host returns as values.

Auto-parallel sums and accumulates gradients of parameters alone, so the active experts are parameters here. MindSpore 2.9 may read
a parameter of the network before the step has written it, so the weights are never written into the parameters: an operator on the
host returns the weights, and passes their gradients on to the parameters. The host's store is in no graph.

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
from pangu_sigma.npu.cuts import active_buffers, only_micro_batches_sum
from pangu_sigma.npu.inputs import StepSettings
from pangu_sigma.npu.row_counts import dispatch_layout
from pangu_sigma.ranks.connect import Groups
from pangu_sigma.ranks.reduce import split_segments


class FetchExperts(nn.Cell):
    """Cell that returns the weights of the rank's active experts. `StepSettings` has the row numbers of these experts in the host's
    store, which are written before each step."""

    def __init__(self, config: Config, store: HostStore, settings: StepSettings, worker: AdamWorker):
        """store: the experts in the host's memory. worker: the thread that updates these experts, and knows their arrays."""
        super().__init__()
        sizes = [len(experts.weights) for experts in store.segments]
        self.segments = nn.CellList([FetchStored(worker, n, size) for n, size in enumerate(sizes)])
        # MindSpore may need a standard operator between parameters and the fetch: 1.0 is added to placeholders, which nobody reads
        self.adds = only_micro_batches_sum(config)
        self.w1, self.b1, self.w2, self.b2 = (ops.Add() for _ in FFN_TENSORS)
        for add in (self.w1, self.b1, self.w2, self.b2):
            add.set_device("CPU")
        # a plain tuple: as parameters of the network MindSpore would rename them
        self.active_rows = tuple(settings.active_rows)
        self.first = Tensor(np.zeros(1, np.float32))

    def construct(self, active):
        """Return a tuple of tensors for each segment. active: the placeholder parameters in the same structure, shapes and dtypes;
        they only receive the gradients."""
        weights: tuple = ()
        token = self.first  # a number that orders the operators and is read by nobody
        for n in range(len(self.segments)):
            inputs = active[n]
            if self.adds:
                sums: tuple = (self.w1(inputs[0], 1.0), self.b1(inputs[1], 1.0), self.w2(inputs[2], 1.0))
                if len(inputs) == len(FFN_TENSORS):
                    sums += (self.b2(inputs[3], 1.0),)
                inputs = sums
            fetched = self.segments[n](self.active_rows[n], inputs, token)
            weights += (fetched[:-1],)
            # the next segment is fetched after this one; MindSpore's parallel passes find no shape at an index of -1
            token = fetched[len(fetched) - 1]
        return weights


class ActiveExperts(nn.Cell):
    """Network of the Ascend step and its loss. The active experts of all ranks are its parameters; nobody reads their values.
    construct(rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS, *others) -> loss scale · loss of each block [M]
        others: e_TH, if the model has rows; then for each name of `inputs.plan_arrays` its arrays of all segments: auto-parallel
        takes a flat list of inputs. Other inputs: as in `NextTokenLoss`.

    The loss scale is a parameter, because inputs of the network are cut into micro-batches, and has one axis, because MindSpore
    2.9 crashes on a network with a scalar parameter. The step writes the scale of the next step after every operator that reads it.
    This parameter is a copy, because it belongs to the last stage, and all stages read the loss scale.
    """

    def __init__(self, config: Config, loss: NextTokenLoss, fetch: FetchExperts, own_segments: list[int]):
        """fetch: cell that returns the weights of the rank's active experts. own_segments: numbers of the rank's segments."""
        super().__init__()
        self.loss, self.fetch = loss, fetch
        self.scale = Parameter(Tensor([1.0], ms.float32), name="pass_scale", requires_grad=False)
        self.multiply = ops.Mul()
        self.active = ParameterTuple(_placeholders(config))
        self.segments, self.dropless = len(config.model.routed), dispatch_layout(config) == "dropless"
        self.has_rows = bool(config.model.rows)
        tensors_of_segments = [len(expert_shapes(config.model, s)) for s in range(len(config.model.segments))]
        self.sizes = tuple(tensors_of_segments * config.model.rre_layers)
        self.begin, self.end = (own_segments[0], own_segments[-1] + 1) if own_segments else (0, 0)

    def own_parameters(self) -> list[Parameter]:
        """Return the placeholder parameters of the rank's own segments."""
        segments = split_segments(tuple(self.active), self.sizes)
        return [parameter for segment in segments[self.begin : self.end] for parameter in segment]

    def construct(self, rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS, *others):
        """Return loss scale · loss of each block [M]. others: the rows of the tokens, if the model has rows; then plan arrays."""
        e_TH, plans = (others[0], others[1:]) if self.has_rows else ((), others)
        order, inverse, ends = self.by_segment(plans)
        active: tuple = ()
        for i in range(len(self.active)):
            active += (self.active[i],)
        active = split_segments(active, self.sizes)
        # experts of other stages stay parameters, because MindSpore removes the operators that read them
        experts = active[: self.begin] + self.fetch(active[self.begin : self.end]) + active[self.end :]
        batch = (rows_BS, positions_BS, documents_BS, slots_M, labels_BS, weights_BS)
        no_draws = None  # the Ascend step has no dropout
        loss_M = self.loss(*batch, no_draws, order, inverse, ends, e_TH, experts)
        return self.multiply(loss_M, self.scale)

    def by_segment(self, plans):
        """Return the plan arrays grouped by segment: three tuples over segments, `order` for dispatch, `inverse` for combine, and
        `ends`, which is None unless the layout is dropless.

        plans: for each name of `inputs.plan_arrays`, the arrays of all segments."""
        order: tuple = ()
        inverse: tuple = ()
        ends: tuple = ()
        count, order_length = self.segments, 4 if self.dropless else 2
        for n in range(count):
            arrays = plans[n::count]  # of segment n, one for each name
            order += (arrays[:order_length],)
            inverse += (arrays[order_length : order_length + 2],)
            ends += (arrays[-1],)
        return order, inverse, ends if self.dropless else None


def _placeholders(config: Config) -> list[Parameter]:
    """Create the placeholder parameters of all stages' active experts, in the network's argument order."""
    arrays = (array for stage in range(config.parallel.stages) for array in active_buffers(config, stage))
    return [Parameter(initializer(Zero(), a.shape, getattr(ms, a.dtype)), name=a.name) for a in arrays]


class SumOverGroups(nn.Cell):
    """Sum of the gradients of common experts over groups. Each group has a copy of these experts; equal gradients make the updates
    equal. construct(grads) -> grads, with the gradients of other weights unchanged."""

    def __init__(self, weights: list[Parameter], groups: Groups):
        """weights: the weights of the gradients, marked by `sharding.mark_parameters`."""
        super().__init__(auto_prefix=False)
        self.is_common = [weight.cut.copies > 1 for weight in weights]
        self.add = None
        if any(self.is_common):
            self.add = ops.AllReduce(ops.ReduceOp.SUM, groups.name("groups")).add_prim_attr(OF_COPIES, True)

    def construct(self, grads):
        if self.add is None:
            return grads
        sums: tuple = ()
        for i in range(len(grads)):
            sums += (self.add(grads[i]) if self.is_common[i] else grads[i],)
        return sums


class RankTier(UninitializedTier):
    """Storage of an Ascend rank's experts in host memory: zeros, which take no memory, until `fill` draws initial values."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def parameter(self, spec: ArraySpec) -> Parameter:
        """Create the parameter of an array, which only checkpoints use: the graph has none of the store."""
        parameter = super().parameter(spec)
        self._arrays[spec.key] = parameter.asnumpy()
        return parameter

    def fill(self, specs: list[ArraySpec]) -> None:
        """Draw the initial values of the experts.

        specs: the expert arrays of all segments. Values of other stages are drawn and thrown away, so that an expert starts with
            the same values on any number of ranks.
        """
        for spec in specs:
            array = self._arrays.get(spec.key)
            if array is None:  # an array of another stage: draw its values for no row
                spec = replace(spec, shape=(0, *spec.shape[1:]), drawn=(False,) * len(spec.drawn))
                array = np.zeros(spec.shape, spec.dtype)
            for _ in spec.fill(array):
                pass  # `fill` yields after each row
