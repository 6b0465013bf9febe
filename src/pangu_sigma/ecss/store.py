"""Expert stores: they keep the experts' weights and Adam state, give the active ones to the network, and update them.

Shape suffixes: N segments of the RRE layers, K experts that this rank stores in a segment (one process: all), A active experts.

Two stores have one contract, so that the training step does not depend on the kind:

* `HostStore` (ECSS): weights, both Adam moments and the step count of every expert are host parameters, one row per expert,
  like an embedding table. `fetch` looks up the active rows on the host, or takes those that a `Prefetcher` has copied; only they
  cross to the device. `update` runs Adam on the host over the same rows. An expert that was not activated keeps weights, moments
  and step count bit for bit (lazy Adam).
* `DeviceStore`: ECSS off. Every expert is an ordinary parameter of the device with ordinary Adam: all of them are multiplied,
  differentiated and updated at each step, as in any mixture of experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from ascend_ops.adam import AdamRows, every_row
from ascend_ops.adam_worker import AdamWorker
from ascend_ops.half import CastWeights
from pangu_sigma.config import Config
from pangu_sigma.ecss.tiers import ArraySpec, HostTier
from pangu_sigma.model.pangu_sigma import ffn_tensors, first_values, tensor_spans
from pangu_sigma.ranks.layout import entries_of_segments, share_of


class ExpertStore(nn.Cell):
    """Weights and Adam state of the experts of a rank's RRE layers: `HostStore` with ECSS, `DeviceStore` without.
    fetch(active_NA, brought) -> FFN_TENSORS of every layer, [A, …], in the network's dtype: arguments of `PanGuSigma`.
    update(grads, active_NA, offsets_NA1, hyper, next_NA, copies) -> number of rows updated, float32 [1]; runs Adam in place.
    updated_rows(active_A, offsets_A1, n) -> the rows of segment n that `update` changes, as `AdamRows` takes them.
    brought, next_NA, copies: `PrefetchedExperts.experts`, `.next_NA` and `.buffers` of a `Prefetcher`; else (), None and ().
    """

    def __init__(self, config: Config, tier: HostTier, rank: int = 0):
        super().__init__()
        share, self.kinds = share_of(config, rank), config.model.routed
        self._held = {kind: (held, config.stored_experts(kind)) for kind, held in share.held.items()}
        self.numbers, entries = share.segments, entries_of_segments(config)
        """Numbers of the store's segments among those of all RRE layers: all, unless pipeline stages divide the layers."""
        self.segments = len(self.numbers)
        self.spans = [slice(*span) for span in tensor_spans(config.model, self.segments)]
        """Where the tensors of each segment stand in `weights`."""
        self.entries = [entries[number] for number in self.numbers]
        """Length of each segment's list of active experts."""
        self.ragged = len(set(entries)) > 1
        """True if segments differ in that length; then the lists of a plan are as long as the longest."""
        self.learned = [n for n, number in enumerate(self.numbers) if config.learns(config.model.routed[number])]
        """Segments whose experts learn; the others keep their bits, and have no gradients."""
        ends = [0, *accumulate(self.spans[n].stop - self.spans[n].start for n in self.learned)]
        self.of_gradients = [slice(*span) for span in pairwise(ends)]
        """Where the gradients of each segment that learns stand in those of all."""
        self.tier = tier
        self.dtype = getattr(ms, config.train.compute_dtype)
        self.cast = CastWeights(self.dtype)
        self._made = [(spec, tier.parameter(spec)) for spec in array_specs(config, rank)]
        self.weights, self.moments, self.variances, self.steps = (
            ParameterTuple([p for spec, p in self._made if spec.kind == kind])
            for kind in ("weight", "moment", "variance", "step")
        )
        rate = config.train.optimizer.weight_decay
        decay = np.array([rate * decay for *_, decay in ffn_tensors(config.model)], np.float32)
        self.decay = [Tensor(decay[: span.stop - span.start]) for span in self.spans]
        self.rows = [step.shape[0] for step in self.steps]
        """Number of experts that the store has of each segment."""
        self.adam = AdamRows()
        self.worker: AdamWorker | None = None
        """Worker that updates the experts behind the step (ecss/worker.py); None: `update` does."""

    def settle(self, in_step: bool = False) -> None:
        """Wait until the experts are those of the last step, before anything but the next step's FFN reads them. in_step: True if
        the next step waits. Raises AdamWorkerError if the worker or a step failed."""
        if self.worker is not None:
            self.worker.settle(in_step)

    @contextmanager
    def step_guard(self) -> Iterator[None]:
        """Run a step's graph in a `with` block. If the block raises, the worker may have updated some experts, or from gradients
        whose memory is free again: then every later `settle` raises AdamWorkerError."""
        try:
            yield
        except BaseException:
            if self.worker is not None:
                self.worker.fail()
            raise

    @property
    def active_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the tensors of the active experts, in the order of `weights`."""
        of_segments = zip(self.entries, self.spans, strict=True)
        return [(entries, *weight.shape[1:]) for entries, span in of_segments for weight in self.weights[span]]

    def cut(self, values_A, length):
        """Return the first `length` values of a list of a plan, if some lists are longer than those of their segments."""
        return first_values(values_A, length) if self.ragged else values_A

    def held_of(self, number: int) -> tuple[np.ndarray, int]:
        """Return the ids of the experts in the rows of the segment with this number, ascending, and how many there are in all."""
        return self._held[self.kinds[number]]

    def parameters_of(self, number: int) -> dict[str, Parameter]:
        """Return the parameters of the experts of the segment with this number, by name. Before their values are read, `settle`."""
        return {spec.name: parameter for spec, parameter in self._made if spec.segment == number}

    def lists_of(self, n, active_NA, offsets_NA1, next_NA=None):
        """Return the lists of segment n by which its rows are updated: rows, token offsets, and entries for copies or None."""
        entries = self.entries[n]
        next_A = None if next_NA is None else self.cut(next_NA[n], entries)
        active_A, offsets_A1 = self.updated_rows(
            self.cut(active_NA[n], entries), self.cut(offsets_NA1[n], entries + 1), n
        )
        return active_A, offsets_A1, next_A

    def update(self, grads, active_NA, offsets_NA1, hyper, next_NA=None, copies=()):
        """Update experts in place by Adam, and return the number of updated rows, float32 [1]. grads: gradients of what `fetch`
        returned, of segments that learn. hyper: as `Hyper` returns. next_NA, copies: of `PrefetchedExperts`, if there are any."""
        updated = 0.0
        for i in range(len(self.learned)):
            n = self.learned[i]
            own = self.spans[n]
            active_A, offsets_A1, next_A = self.lists_of(n, active_NA, offsets_NA1, next_NA)
            updated = updated + self.adam(
                self.weights[own],
                self.moments[own],
                self.variances[own],
                grads[self.of_gradients[i]],
                self.steps[n],
                active_A,
                offsets_A1,
                hyper,
                self.decay[n],
                copies[own],
                next_A,
            )
        return updated


class HostStore(ExpertStore):
    """Expert store with ECSS: host arrays with one row per expert, fetched and updated by row number."""

    def __init__(self, config: Config, tier: HostTier, rank: int = 0):
        super().__init__(config, tier, rank)
        self.lookup = ops.Gather()
        self.lookup.set_device("CPU")

    def fetch(self, active_NA, brought=()):
        """Return the weights of the active experts for the network, or `brought`, if a prefetcher has fetched them already."""
        if brought:
            return brought
        # unused entries hold K: they read some row, and nobody reads theirs
        fetched: tuple = ()
        for n in range(self.segments):
            active_A = self.cut(ops.minimum(active_NA[n], self.rows[n] - 1), self.entries[n])
            for i in range(self.spans[n].start, self.spans[n].stop):
                fetched += (self.cast(self.lookup(self.weights[i], active_A, 0)),)
        return fetched

    def updated_rows(self, active_A, offsets_A1, n=0):
        """Return the arguments unchanged, because only active experts are updated: their row numbers, and their token offsets."""
        return active_A, offsets_A1


class DeviceStore(ExpertStore):
    """Expert store without ECSS: all experts take part in every step."""

    def __init__(self, config: Config, tier: HostTier, rank: int = 0):
        super().__init__(config, tier, rank)
        self.all_rows = [every_row(rows) for rows in self.rows]

    def fetch(self, active_NA, brought=()):
        """Return the weights of all experts for the network."""
        weights: tuple = ()
        for weight in self.weights:
            weights += (self.cast(weight),)
        return weights

    def updated_rows(self, active_A, offsets_A1, n=0):
        """Return the row numbers of all experts, and token offsets by which each expert has a token, so that Adam updates it."""
        return self.all_rows[n]


def make_store(config: Config, tier: HostTier | None = None, rank: int = 0) -> ExpertStore:
    """Make the expert store of a rank, of the kind that `ecss.enabled` selects. tier: storage of the arrays; None: host memory."""
    kind = HostStore if config.ecss.enabled else DeviceStore
    return kind(config, tier or HostTier(), rank)


def array_specs(config: Config, rank: int = 0) -> list[ArraySpec]:
    """Return the specifications of the arrays in the store of `rank`, in the order in which they are initialised."""
    share, model = share_of(config, rank), config.model
    moments = "uint16" if config.ecss.moments == "bfloat16" else "float32"  # NumPy has no bfloat16: its bits
    replicated = config.model.expert_init == "replicated"
    specs = []
    for n in share.segments:
        kind, (_, s) = model.routed[n], model.in_layer(n)
        held, rows = share.held[kind], len(share.held[kind])
        drawn = tuple(np.isin(np.arange(config.stored_experts(kind)), held).tolist())
        for name, shape, init, decay in ffn_tensors(model, s):
            full = (rows, *shape)
            specs += [
                ArraySpec(n, name, "weight", full, "float32", init, replicated, decay, drawn),
                ArraySpec(n, f"{name}.moment", "moment", full, moments),
                ArraySpec(n, f"{name}.variance", "variance", full, moments),
            ]
        specs.append(ArraySpec(n, "step", "step", (rows,), "int32"))
    return specs
