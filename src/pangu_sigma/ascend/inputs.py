"""Inputs of the Ascend step, with their shapes and their strategies over ranks, and the step's settings."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn

from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch
from pangu_sigma.parallel.layout import (
    active_entries,
    dispatch_layout,
    exchanged_rows,
    multiplied_rows,
    tokens_of_rank,
)
from pangu_sigma.sections import Segment


def input_strategies(config: Config) -> tuple[tuple[int, ...], ...]:
    """Return the number of slices along each axis of each input of the Ascend step: MindSpore's parallel strategies."""
    ranks = config.parallel.stage_ranks // config.parallel.tensor
    by_row, by_rank = (ranks, 1), (ranks,)
    batch = (by_row, by_row, by_row, by_rank, by_row, by_row)
    return (*batch, *[by_rank] * (len(plan_arrays(config)) * len(config.model.routed)))


def step_inputs(config: Config) -> tuple[Tensor, ...]:
    """Return zeros in the shapes of one rank's inputs, with which the Ascend step is compiled before there are data."""
    parallel, model, passes = config.parallel, config.model, config.train.accumulation
    sequences = passes * config.train.batch_size // (parallel.stage_ranks // parallel.tensor)
    blocks = passes * config.data.domains_per_step // parallel.groups
    ints = [(sequences, model.seq_length)] * 3 + [(blocks,), (sequences, model.seq_length)]
    lengths = {kind: plan_arrays(config, kind) for kind in model.kinds}
    plans = [(passes * lengths[kind][name],) for name in lengths["own"] for kind in model.routed]

    def zeros(shape: tuple[int, ...]) -> Tensor:
        return Tensor(np.zeros(shape, np.int32))

    weights = Tensor(np.zeros((sequences, model.seq_length), np.float32))
    return (*map(zeros, ints), weights, *map(zeros, plans))


def inputs_of(batch: Batch, config: Config) -> tuple[np.ndarray, ...]:
    """Return a batch as the inputs of the Ascend step, its micro-batches concatenated. batch: sequences of this rank, with routing
    plans in an Ascend layout."""
    a, routed = batch.arrays(), config.model.routed  # a batch for a dense model has plans of zeros
    lengths = {kind: plan_arrays(config, kind) for kind in config.model.kinds}
    arrays = (a.rows_GBS, a.positions_GBS, a.documents_GBS, a.slots_GM, a.labels_GBS, a.weights_GBS)
    for name in lengths["own"] if routed else ():
        of_passes = np.stack([getattr(plan, name) for plan in batch.plan.plans])
        arrays = (*arrays, *(of_passes[:, n, : lengths[kind][name]] for n, kind in enumerate(routed)))
    inputs = (array.reshape(-1, *array.shape[2:]) for array in arrays)
    return tuple(inputs)


def plan_arrays(config: Config, kind: Segment = "own") -> dict[str, int]:
    """Return the lengths on a rank, by name, of the `ExchangePlan` fields that the graph takes for each segment of a kind: the
    indices of dispatch and of combine, and in the dropless layout the ends of the experts' rows."""
    peers, tokens = config.parallel.expert, tokens_of_rank(config)
    sent, multiplied = exchanged_rows(config), multiplied_rows(config)
    if dispatch_layout(config, ascend=True) == "compacted":
        return {"order_NR": sent, "arrive_NW": multiplied, "inverse_NT": tokens, "leave_NR": sent}
    there = {"order_NR": sent, "arrive_NW": multiplied, "sent_NP": peers, "taken_NP": peers}
    return there | {"inverse_NT": tokens, "leave_NR": multiplied + 1, "ends_NA": active_entries(config, kind)}


class StepSettings(nn.Cell):
    """Settings of an Ascend step that no NPU reads in the network: learning rate, active experts of the rank, whether it learns.

    They are parameters and not inputs, because auto-parallel wants every input of the step to be one of the network.
    """

    def __init__(self, segments: list[int], entries: list[int]):
        """segments: numbers of the segments of the rank's stage. entries: length of the list of active experts of each."""
        super().__init__(auto_prefix=False)  # the plan knows these parameters by their names
        self.segments, self.entries = segments, entries
        self.rate = Parameter(Tensor(0.0, ms.float32), name="rate", requires_grad=False)
        self.learns = Parameter(Tensor(1.0, ms.float32), name="learns", requires_grad=False)
        self.active_rows = _host_tables("active_rows", entries)
        self.used = _host_tables("used", [length + 1 for length in entries])

    def write(self, rate: float, batch: Batch, learns: float) -> None:
        """Write the settings of the next step, which takes `batch`. rate: learning rate. learns: 1.0, or 0.0 to update nothing."""
        arrays = batch.arrays()
        self.rate.set_data(Tensor(rate, ms.float32))
        self.learns.set_data(Tensor(learns, ms.float32))
        for rows, used, n, length in zip(self.active_rows, self.used, self.segments, self.entries, strict=True):
            rows.set_data(Tensor(arrays.active_NA[n, :length]))
            used.set_data(Tensor(arrays.used_NA1[n, : length + 1]))


def _host_tables(name: str, lengths: list[int]) -> ParameterTuple:
    """Return an int32 parameter of each length, which only host operators read."""
    tables = [
        Parameter(Tensor(np.zeros(length, np.int32)), f"{name}.{i}", requires_grad=False)
        for i, length in enumerate(lengths)
    ]
    for table in tables:
        table.parallel_optimizer = False
    return ParameterTuple(tables)
