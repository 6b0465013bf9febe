"""The update of the experts behind the step, by a worker: `ecss.update`.

RRE layers are on top, so in the next forward pass their weights are needed last: the host updates experts while the device updates
the dense parameters and, in the next step, goes forward through the dense layers.

    end of the step    the norm is known           → the worker begins
    next forward pass  in front of each RRE layer  → the step waits for the layer's own experts, if it must

Results are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from ascend_ops.adam_worker import AdamWorker, Await, StartUpdate
from pangu_sigma.config import Config
from pangu_sigma.ecss.store import ExpertStore, HostStore
from pangu_sigma.model.declare import as_input
from pangu_sigma.model.pangu_sigma import PanGuSigma, RoutedFFN


class AwaitedFFN(nn.Cell):
    """Expert FFN of a segment that first waits until the experts are updated: construct(rows, *weights and offsets) -> rows.

    In a training step the weights are `WorkerUpdate.experts`, into which the wait copies them. Elsewhere the store looks them up
    after the updates.
    """

    def __init__(self, ffn: nn.Cell, worker: AdamWorker, segment: int):
        super().__init__()
        self.ffn, self.wait = ffn, Await(worker, segment)

    def construct(self, rows, *arguments):
        return self.ffn(self.wait(rows), *arguments)


class WorkerUpdate(nn.Cell):
    """Update of the store's experts by a worker. `update` has the arguments of `ExpertStore.update`."""

    def __init__(self, store: ExpertStore, copies_gradients: bool = False):
        """copies_gradients: True if the memory of gradients is used for something else after the step has started the update."""
        super().__init__()
        self.store = store
        self.worker = AdamWorker(len(store.segments), copies_gradients)
        store.worker = self.worker
        self.start = nn.CellList([StartUpdate(self.worker, n) for n in range(len(store.segments))])
        self.experts: tuple = ()
        self._fetched: list[list[np.ndarray]] = []
        self.register()

    def make_room(self) -> None:
        """Allocate the weights of the active experts for a network that runs on a CPU: the arrays `_fetched`, into which
        `AwaitedFFN` copies them, and `experts`, tensors in the same memory, which the network reads."""
        dtype = np.float16 if self.store.dtype == ms.float16 else np.float32
        self._fetched = [[np.zeros(shape, dtype) for shape in experts.active_shapes] for experts in self.store.segments]
        self.experts = as_input(tuple(tuple(map(Tensor.from_numpy, arrays)) for arrays in self._fetched))

    def register(self, active_A: Sequence[np.ndarray] | None = None) -> None:
        """Tell the worker where the arrays are in memory. Call it before each step: a parameter that Python has set has moved.
        active: active experts of each segment, which the step reads in `experts`; None if it looks them up itself."""
        for n, experts in enumerate(self.store.segments):
            parameters = experts.weights, experts.moments, experts.variances
            weights, moments, variances = ([p.asnumpy() for p in of_kind] for of_kind in parameters)
            steps, decay = experts.steps.asnumpy(), experts.decay.asnumpy().tolist()
            copied = () if active_A is None else (active_A[n], self._fetched[n])
            self.worker.register(n, weights, moments, variances, steps, decay, *copied)

    def update(self, grads, active_A, used_A1, hyper):
        """Let the worker update all segments that learn, and return a tensor of each, on which the next operators can depend. The
        gradients must keep their memory until the next step has waited for the update."""
        tensors: tuple = ()
        for n in range(len(self.start)):
            if self.store.segments[n].learns:
                rows_A, offsets_A1 = self.store.segments[n].updated_rows(active_A[n], used_A1[n])
                tensors += (self.start[n](grads[n], rows_A, offsets_A1, hyper),)
        return tensors


def update_by_worker(config: Config, network: PanGuSigma, store: ExpertStore) -> WorkerUpdate | None:
    """Make the worker of a store, and let the network wait for it in front of each expert FFN; None if the step itself updates.
    On the CPU `ecss.update=auto` makes no worker: the step needs the cores that would hide the update."""
    if not config.ecss.by_worker(npu=False) or not isinstance(store, HostStore) or not len(store.segments):
        return None
    update = WorkerUpdate(store)
    update.make_room()
    routed_ffns = [layer.ffn for layer in network.layers if isinstance(layer.ffn, RoutedFFN)]
    for n, segment in enumerate(segment for ffn in routed_ffns for segment in ffn.segments):
        segment.experts = AwaitedFFN(segment.experts, update.worker, n)
    return update
