"""Expert stores: they keep the experts' weights and Adam state, give the active ones to the network, and update them.

Shape suffixes: N segments of the RRE layers, K experts that this rank stores in a segment (one process: all), A active experts.

Two stores have one contract, so that the training step does not depend on the kind. Each is a loop
over cells of single segments, which in the paper are whole layers:

* `HostStore` of `HostExperts` (ECSS): weights, both Adam moments and the step count of every expert are host parameters, one row
  per expert, like an embedding table. `fetch` looks up the active rows on the host; only they cross to the device. `update` runs
  Adam on the host over the same rows. An expert that was not activated keeps its arrays bit for bit (lazy Adam).
* `DeviceStore` of `DeviceExperts`: ECSS off. Every expert is an ordinary parameter of the device with ordinary Adam: all of them
  are multiplied, differentiated and updated at each step, as in any mixture of experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from ascend_ops.adam import AdamRows, every_row
from ascend_ops.adam_worker import AdamWorker
from ascend_ops.half import CastWeights
from pangu_sigma.config import Config
from pangu_sigma.ecss.rows import RowStore
from pangu_sigma.ecss.tiers import ArraySpec, HostTier
from pangu_sigma.model.pangu_sigma import PanGuSigma, ffn_tensors
from pangu_sigma.ranks.experts import make_experts_for
from pangu_sigma.ranks.layout import share_of
from pangu_sigma.ranks.ranks import SINGLE_PROCESS, Ranks
from pangu_sigma.rre.plan import RoutedSegment


class StoredExperts(nn.Cell):
    """Experts of one segment in a store: a row of its arrays is an expert.
    fetch(active_A) -> FFN_TENSORS of the active experts [A, …] in the network's dtype, without b2 if the segment has none.
    update(grads, active_A, used_A1, hyper) -> number of rows updated, float32 [1]; runs Adam in place."""

    def __init__(self, config: Config, segment: RoutedSegment, tier: HostTier):
        super().__init__()
        self.segment, self.learns, self.last = segment, segment.learns, segment.stored - 1
        specs = segment_arrays(config, segment)
        self.named = {spec.name: tier.parameter(spec) for spec in specs}
        """Parameters by the names of their arrays. Before their values are read, `settle` the store."""
        self.weights, self.moments, self.variances = (
            ParameterTuple([self.named[spec.name] for spec in specs if spec.kind == kind])
            for kind in ("weight", "moment", "variance")
        )
        self.steps = self.named["step"]
        rate = config.train.optimizer.weight_decay
        self.decay = Tensor(np.array([rate * spec.decay for spec in specs if spec.kind == "weight"], np.float32))
        self.cast, self.adam = CastWeights(getattr(ms, config.train.compute_dtype)), AdamRows()

    @property
    def active_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the tensors of the active experts, which are also the shapes of their gradients."""
        return [(self.segment.entries, *weight.shape[1:]) for weight in self.weights]

    def update(self, grads, active_A, used_A1, hyper):
        """Update experts in place. grads: gradients of what `fetch` returned. active, used: as in `RoutingPlan`. hyper: as `Hyper`
        returns."""
        rows_A, used_A1 = self.updated_rows(active_A, used_A1)
        arrays = (self.weights, self.moments, self.variances, grads, self.steps)
        return self.adam(*arrays, rows_A, used_A1, hyper, self.decay)


class HostExperts(StoredExperts):
    """Experts of a segment with ECSS: fetched and updated by row number."""

    def __init__(self, config: Config, segment: RoutedSegment, tier: HostTier):
        super().__init__(config, segment, tier)
        self.lookup = ops.Gather().set_device("CPU")

    def fetch(self, active_A):
        """Return the weights of the active experts. Unused entries hold K: any row is read for them, and no token uses the row."""
        rows_A = ops.minimum(active_A, self.last)
        weights: tuple = ()
        for weight in self.weights:
            weights += (self.cast(self.lookup(weight, rows_A, 0)),)
        return weights

    def updated_rows(self, active_A, used_A1):
        """Return the rows that `update` changes, and offsets of their tokens, as `AdamRows` takes them: the arguments."""
        return active_A, used_A1


class DeviceExperts(StoredExperts):
    """Experts of a segment without ECSS: all take part in every step."""

    def __init__(self, config: Config, segment: RoutedSegment, tier: HostTier):
        super().__init__(config, segment, tier)
        self.every_row = every_row(segment.stored)

    def fetch(self, active_A):
        """Return the weights of all experts."""
        weights: tuple = ()
        for weight in self.weights:
            weights += (self.cast(weight),)
        return weights

    def updated_rows(self, active_A, used_A1):
        """Return all rows, and offsets by which each has a token, so that Adam updates it."""
        return self.every_row


class ExpertStore(nn.Cell):
    """Experts of a rank's RRE layers: `HostStore` with ECSS, `DeviceStore` without. Arguments and results are tuples over the
    segments of what `StoredExperts` takes and returns."""

    kind: ClassVar[type[StoredExperts]]

    def __init__(self, config: Config, tier: HostTier | None = None, rank: int = 0):
        """tier: storage of the arrays; None: host memory."""
        super().__init__()
        self.tier, self.dtype = tier or HostTier(), getattr(ms, config.train.compute_dtype)
        self.segments = nn.CellList([self.kind(config, s, self.tier) for s in share_of(config, rank).stored])
        self.rows = RowStore(config, self.tier) if config.model.rows else None
        self.worker: AdamWorker | None = None
        """Worker that updates the experts behind the step (ecss/worker.py); None: `update` does."""

    def fetch(self, active_A):
        """Return the weights of the active experts of each segment."""
        experts: tuple = ()
        for n in range(len(self.segments)):
            experts += (self.segments[n].fetch(active_A[n]),)
        return experts

    def rows_of(self, keys_EGBS: np.ndarray) -> np.ndarray | tuple[()]:
        """Return the rows of tokens, e [G, T, H], as the last step left them; () without rows. keys: as in `Batch`."""
        return self.rows.gather(keys_EGBS) if self.rows else ()

    def update(self, grads, active_A, used_A1, hyper):
        """Update the experts of segments that learn, and return the number of updated rows. grads: () for other segments."""
        updated = 0.0
        for n in range(len(self.segments)):
            if self.segments[n].learns:
                updated = updated + self.segments[n].update(grads[n], active_A[n], used_A1[n], hyper)
        return updated

    def traffic(self, active_A: Sequence[np.ndarray]) -> dict[str, float]:
        """Return what a step with these active experts moves between host and device, by metric: MiB of their weights, in the dtype
        of the network, and of the gradients of the experts that learn. Nothing without ECSS."""
        return {}

    def settle(self) -> None:
        """Wait until the last step has updated the experts, before anything but the next step's FFN reads them; rows wait by
        themselves. Raises AdamWorkerError if the worker or a step failed."""
        if self.worker is not None:
            self.worker.settle()

    @contextmanager
    def step_guard(self) -> Iterator[None]:
        """Run a step's graph in a `with` block. If the block raises, the worker may have updated only some of the experts, or used
        gradients whose memory was already freed: so every later `settle` raises AdamWorkerError."""
        try:
            yield
        except BaseException:
            if self.worker is not None:
                self.worker.fail()
            raise


class HostStore(ExpertStore):
    """Expert store with ECSS: host arrays with one row per expert."""

    kind = HostExperts

    def traffic(self, active_A: Sequence[np.ndarray]) -> dict[str, float]:
        """Return "fetched_mib" and "returned_mib": of active experts the weights, and of learning ones the gradients, in MiB."""
        metrics = {"fetched_mib": 0.0, "returned_mib": 0.0}
        for experts, active in zip(self.segments, active_A, strict=True):
            elements = sum(int(np.prod(shape[1:])) for shape in experts.active_shapes)  # unused entries exceed `last`
            mib = int((active <= experts.last).sum()) * elements * (2 if self.dtype == ms.float16 else 4) / (1 << 20)
            metrics["fetched_mib"] += mib
            metrics["returned_mib"] += mib * experts.learns
        return metrics


class DeviceStore(ExpertStore):
    """Expert store without ECSS: parameters of the device."""

    kind = DeviceExperts


def make_store(config: Config, tier: HostTier | None = None, rank: int = 0) -> ExpertStore:
    """Make the expert store of a rank, of the kind that `ecss.enabled` selects. tier: as in `ExpertStore`."""
    return (HostStore if config.ecss.enabled else DeviceStore)(config, tier, rank)


def make_network(config: Config, ranks: Ranks = SINGLE_PROCESS, dtype: ms.Type | None = None) -> PanGuSigma:
    """Make the network of a rank. dtype: type that it computes in; None for `train.compute_dtype`."""
    dtype = dtype or getattr(ms, config.train.compute_dtype)
    return PanGuSigma(config.model, config.slots, dtype, routed=make_experts_for(config, ranks))


def build(
    config: Config, ranks: Ranks = SINGLE_PROCESS, tier: HostTier | None = None, dtype: ms.Type | None = None
) -> tuple[PanGuSigma, ExpertStore]:
    """Make the network and the expert store of a rank. The initial values of the network are drawn first, then the experts'."""
    return make_network(config, ranks, dtype), make_store(config, tier, ranks.rank)


def array_specs(config: Config, rank: int = 0) -> list[ArraySpec]:
    """Return the specifications of the arrays in the store of `rank`, in the order in which they are initialised."""
    return [spec for segment in share_of(config, rank).stored for spec in segment_arrays(config, segment)]


def segment_arrays(config: Config, segment: RoutedSegment) -> list[ArraySpec]:
    """Return the specifications of the arrays of one segment: weights, both moments of each weight, and the step count."""
    moments = "uint16" if config.ecss.moments == "bfloat16" else "float32"  # NumPy has no bfloat16: its bits
    replicated, has_row = config.model.expert_init == "replicated", tuple((segment.row_of >= 0).tolist())
    n, rows, specs = segment.number, segment.stored, []
    for name, shape, init, decay in ffn_tensors(config.model, config.model.in_layer(n).number):
        full = (rows, *shape)
        specs += [
            ArraySpec(n, name, "weight", full, "float32", init, replicated, decay, drawn=has_row),
            ArraySpec(n, f"{name}.moment", "moment", full, moments),
            ArraySpec(n, f"{name}.variance", "variance", full, moments),
        ]
    return [*specs, ArraySpec(n, "step", "step", (rows,), "int32")]
