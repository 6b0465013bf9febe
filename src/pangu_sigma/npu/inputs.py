"""Inputs of the Ascend step, with their shapes and their strategies over ranks, and the step's settings."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn

from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch
from pangu_sigma.npu.row_counts import dispatch_layout, exchanged_rows, multiplied_rows, tokens_of_rank
from pangu_sigma.ranks.layout import active_entries
from pangu_sigma.rre.plan import RoutedSegment
from pangu_sigma.sections import Segment

E_INPUT = 6
"""Index of e, the rows of the tokens (`model.rows`), among the inputs of the Ascend step, behind the arrays of the batch."""


def input_strategies(config: Config) -> tuple[tuple[int, ...], ...]:
    """Return the number of slices along each axis of each input of the Ascend step: MindSpore's parallel strategies."""
    ranks = config.parallel.stage_ranks // config.parallel.tensor
    return tuple((ranks, *(1,) * (len(shape) - 1)) for shape, _ in _inputs(config))


def step_inputs(config: Config) -> tuple[Tensor, ...]:
    """Return zeros in the shapes of one rank's inputs, with which the Ascend step is compiled before there are data."""
    return tuple(Tensor(np.zeros(shape, dtype)) for shape, dtype in _inputs(config))


def _inputs(config: Config) -> list[tuple[tuple[int, ...], type]]:
    """Return shape and dtype of each input of the step on a rank, in the order of `inputs_of`: first the arrays of the batch, then
    the tokens' rows (`model.rows`) if the model has them, then the arrays of the routing plans."""
    parallel, model, micro_batches = config.parallel, config.model, config.train.accumulation
    sequences = micro_batches * config.train.batch_size // (parallel.stage_ranks // parallel.tensor)
    domain_blocks = micro_batches * config.data.domains_per_step // parallel.groups
    tokens = (sequences, model.seq_length)
    inputs: list[tuple[tuple[int, ...], type]] = [
        # rows of the word table, positions, documents, slot of each domain block, labels
        *((shape, np.int32) for shape in (tokens, tokens, tokens, (domain_blocks,), tokens)),
        (tokens, np.float32),  # weights of the labels in the loss
    ]
    if model.rows:
        inputs.append(((sequences * model.seq_length, model.hidden), np.float32))
    lengths = {kind: plan_arrays(config, kind) for kind in model.kinds}
    # for each name, the arrays of all segments
    plans = [(micro_batches * lengths[kind][name],) for name in lengths["own"] for kind in model.routed]
    return inputs + [(shape, np.int32) for shape in plans]


def inputs_of(batch: Batch, config: Config, e_GTH: np.ndarray | tuple[()] = ()) -> tuple[np.ndarray, ...]:
    """Return the inputs of the Ascend step for a batch: its arrays, with micro-batches concatenated along the first axis. batch:
    sequences of this rank, with an `ExchangePlan` for each segment. e_GTH: rows of the batch's tokens; () without `model.rows`."""
    names = ("rows_GBS", "positions_GBS", "documents_GBS", "slots_GM", "labels_GBS", "weights_GBS")
    arrays = [getattr(batch, name) for name in names]
    arrays += [e_GTH] if isinstance(e_GTH, np.ndarray) else []
    arrays += [getattr(plan, name) for name in plan_arrays(config) for plan in batch.plans]
    return tuple(array.reshape(-1, *array.shape[2:]) for array in arrays)


def plan_arrays(config: Config, kind: Segment = "own") -> dict[str, int]:
    """Return the `ExchangePlan` fields that the graph takes for a segment of a kind, as their lengths by name: the indices of
    dispatch, then of combine, then if dropless the ends of the experts' rows. Lengths are for one rank and one micro-batch."""
    peers, tokens = config.parallel.expert, tokens_of_rank(config)
    sent, multiplied = exchanged_rows(config), multiplied_rows(config)
    if dispatch_layout(config) == "compacted":
        return {"order_GR": sent, "arrive_GW": multiplied, "inverse_GT": tokens, "leave_GR": sent}
    dispatch_arrays = {"order_GR": sent, "arrive_GW": multiplied, "sent_GP": peers, "taken_GP": peers}
    return dispatch_arrays | {"inverse_GT": tokens, "leave_GR": multiplied + 1, "ends_GA": active_entries(config, kind)}


class StepSettings(nn.Cell):
    """Settings of an Ascend step that no NPU reads in the network: learning rate, active experts of the rank, update or not.

    They are parameters and not inputs, because auto-parallel wants every input of the step to be one of the network.
    """

    def __init__(self, segments: list[RoutedSegment]):
        """segments: the segments whose experts the rank stores."""
        super().__init__(auto_prefix=False)  # the plan knows these parameters by their names
        self.numbers = [segment.number for segment in segments]
        self.rate = Parameter(Tensor(0.0, ms.float32), name="rate", requires_grad=False)
        self.learns = Parameter(Tensor(1.0, ms.float32), name="learns", requires_grad=False)
        self.active_rows = _host_tables("active_rows", [segment.entries for segment in segments])
        self.used = _host_tables("used", [segment.entries + 1 for segment in segments])

    def write(self, rate: float, batch: Batch, learns: float) -> None:
        """Write the settings of the next step, which takes `batch`: the routing plans of `batch` name the active experts. rate:
        learning rate. learns: 1.0, or 0.0 to update nothing."""
        self.rate.set_data(Tensor(rate, ms.float32))
        self.learns.set_data(Tensor(learns, ms.float32))
        for rows, used, n in zip(self.active_rows, self.used, self.numbers, strict=True):
            rows.set_data(Tensor(batch.plans[n].active_A))
            used.set_data(Tensor(batch.plans[n].used_A1))


def _host_tables(name: str, lengths: list[int]) -> ParameterTuple:
    """Return an int32 parameter of zeros for each length, which only operators on the host read. name: prefix of their names."""
    zeros = (Tensor(np.zeros(length, np.int32)) for length in lengths)
    tables = [Parameter(zero, f"{name}.{i}", requires_grad=False) for i, zero in enumerate(zeros)]
    for table in tables:
        table.parallel_optimizer = False  # optimizer parallelism would cut the table, but a rank needs all of its own
    return ParameterTuple(tables)
