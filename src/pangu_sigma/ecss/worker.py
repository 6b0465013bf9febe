"""The update of the experts behind the step, by a worker: `ecss.update`.

RRE layers are on top, so in the next forward pass their weights are needed last: the host updates experts while the device updates
the dense parameters and, in the next step, goes forward through the dense layers.

    end of the step    the norm is known           → the worker begins
    next forward pass  in front of each RRE layer  → the step waits for the layer's own experts, if it must

Results are the same bit for bit.
"""

from __future__ import annotations

import logging

from mindspore import nn

from ascend_ops.adam_worker import AdamWorker, Await, StartUpdate
from pangu_sigma.config import Config
from pangu_sigma.ecss.store import ExpertStore, HostStore
from pangu_sigma.model.pangu_sigma import PanGuSigma, RoutedFFN

logger = logging.getLogger(__name__)


class AwaitedFFN(nn.Cell):
    """Expert FFN of a segment that first waits until the experts are updated: construct(rows, *weights and offsets) -> rows."""

    def __init__(self, ffn: nn.Cell, worker: AdamWorker, segment: int):
        super().__init__()
        self.ffn, self.wait = ffn, Await(worker, segment)

    def construct(self, rows, *arguments):
        return self.ffn(self.wait(rows), *arguments)


class WorkerUpdate(nn.Cell):
    """Update of the store's experts by a worker. `update` has the arguments of `ExpertStore.update`."""

    def __init__(self, config: Config, store: ExpertStore, copies_gradients: bool = False):
        """copies_gradients: see `AdamWorker`."""
        super().__init__()
        self.store = store
        self.worker = AdamWorker(store.segments, copies_gradients)
        store.worker = self.worker
        self.decay = [decay.asnumpy().tolist() for decay in store.decay]
        self.start = nn.CellList([StartUpdate(self.worker, n) for n in store.learned])
        self.register()

    def register(self) -> None:
        """Tell the worker where the arrays are. Call it before each step: a parameter that Python has set is elsewhere."""
        store = self.store
        for n, span in enumerate(store.spans):
            arrays = [[p.asnumpy() for p in of[span]] for of in (store.weights, store.moments, store.variances)]
            self.worker.register(n, arrays[0], arrays[1], arrays[2], store.steps[n].asnumpy(), self.decay[n])

    def update(self, grads, active_NA, offsets_NA1, hyper, next_NA=None, copies=()):
        """Let the worker update all segments that learn, and return a token of each. The gradients must keep their memory until the
        next step has waited for the update."""
        tokens: tuple = ()
        for i in range(len(self.start)):
            n = self.store.learned[i]
            active_A, offsets_A1, next_A = self.store.lists_of(n, active_NA, offsets_NA1, next_NA)
            of_segment, copy = grads[self.store.of_gradients[i]], copies[self.store.spans[n]]
            tokens += (self.start[i](of_segment, active_A, offsets_A1, hyper, copy, next_A),)
        return tokens


def update_by_worker(config: Config, network: PanGuSigma, store: ExpertStore) -> WorkerUpdate | None:
    """Make the worker of a store, and let the network wait for it in front of each expert FFN; None if nothing is to be hidden.

    On the CPU `ecss.update=auto` hides nothing: there the device's cores are the host's.
    """
    if not config.ecss.by_worker(npu=False) or not isinstance(store, HostStore) or not store.learned:
        return None
    update = WorkerUpdate(config, store)
    ffns = [layer.ffn for layer in network.layers if isinstance(layer.ffn, RoutedFFN)]
    for number, ffn in enumerate(ffns):
        for s in range(len(ffn.ffn)):
            ffn.ffn[s] = AwaitedFFN(ffn.ffn[s], update.worker, number * len(ffn.ffn) + s)
    return update
