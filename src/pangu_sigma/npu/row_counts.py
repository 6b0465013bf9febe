"""Numbers of rows that ranks of NPUs exchange and multiply: the layout of a chip, and its limits by the configuration. Without
MindSpore or a device.

Suffixes in the texts: T tokens of a rank, C capacity, R rows that a rank sends, W rows that its experts multiply.
"""

from __future__ import annotations

import math
from typing import Literal

from pangu_sigma.chips import CHIP_DATA, ChipData
from pangu_sigma.config import Config
from pangu_sigma.npu.capacity import Capacity, DispatchLayout
from pangu_sigma.ranks.layout import active_entries, active_in_group
from pangu_sigma.sections import Segment

Room = dict[Segment, Capacity]
"""Limits on the rows that ranks exchange, for each kind of segments."""


def chip_of(config: Config) -> ChipData:
    """Return the chip, with its server, that a configuration is for."""
    return CHIP_DATA[config.parallel.chip]


def tokens_of_rank(config: Config) -> int:
    """Return T, the tokens of a rank in one pass; ranks of a tensor group have the same tokens."""
    parallel = config.parallel
    return config.train.batch_size // (parallel.stage_ranks // parallel.tensor) * config.model.seq_length


def capacity(config: Config, kind: Segment = "own") -> int:
    """Return C, the most rows that a rank may send to one expert: `capacity_factor` times an even share of the rank's tokens among
    the experts that are active in a group. `equalized_rows` raises it, so that arrays of all kinds of segments are equally long."""
    sent_rows = config.parallel.capacity_factor * tokens_of_rank(config)
    least_rows = {other: math.ceil(sent_rows / active_in_group(config, other)) for other in config.model.kinds}
    return equalized_rows(config, least_rows)[kind]


def equalized_rows(config: Config, least_rows: dict[Segment, int]) -> dict[Segment, int]:
    """Raise the number of rows for one expert until all experts of a rank together have as many rows in segments of every kind.
    Then the arrays of all segments' plans are equally long (our choice). least_rows, result: rows for one expert, by kind."""
    experts = {kind: active_entries(config, kind) for kind in least_rows}
    multiple = math.lcm(*experts.values())  # rows of a rank are divided evenly among its experts of any kind
    rank_rows = max(math.ceil(rows * experts[kind] / multiple) for kind, rows in least_rows.items()) * multiple
    return {kind: rank_rows // count for kind, count in experts.items()}


def dispatch_layout(config: Config) -> DispatchLayout:
    """Return the layout of a run's dispatched rows, which the chip decides.

    With stages every chip has the layout of 910A, because the other one needs a Morph (an operator that wraps a graph): if a weight
    goes into one, MindSpore 2.9 adds gradients of micro-batches in a circle, and does not compile the graph.
    """
    return "dropless" if chip_of(config).dropless and config.parallel.stages == 1 else "compacted"


def gather_operator(config: Config) -> Literal["ours", "cann"]:
    """Return whose operator gathers rows on NPUs: `parallel.gather` if it is set. By default it is CANN's in the dropless layout,
    whose graph spells out the work of one rank. Else it is ours, because CANN's cannot be restricted to the rows of its rank."""
    return config.parallel.gather or ("cann" if dispatch_layout(config) == "dropless" else "ours")


def even_rows_received(config: Config, kind: Segment = "own") -> float:
    """Return how many rows arrive at one active expert of a rank under an even load; in the dropless layout, at all active experts
    of the rank together."""
    return tokens_of_rank(config) / (1 if dispatch_layout(config) == "dropless" else active_entries(config, kind))


def room_of(config: Config) -> Room:
    """Return, for each kind of segments, the limits on the rows that a rank sends to an expert, and on the rows that arrive."""
    factor = config.parallel.arrival_factor or config.parallel.capacity_factor
    arrived = {kind: math.ceil(factor * even_rows_received(config, kind)) for kind in config.model.kinds}
    if dispatch_layout(config) == "dropless":
        return {kind: Capacity(None, rows) for kind, rows in arrived.items()}
    return {kind: Capacity(capacity(config, kind), rows) for kind, rows in equalized_rows(config, arrived).items()}


def exchanged_rows(config: Config) -> int:
    """Return R, the number of rows that a rank sends in each segment of an RRE layer: the capacity for each active expert of its
    group; in the dropless layout one row for each of its tokens, and an empty row."""
    is_dropless = dispatch_layout(config) == "dropless"
    return tokens_of_rank(config) + 1 if is_dropless else active_in_group(config) * capacity(config)


def multiplied_rows(config: Config) -> int:
    """Return W, the number of rows that a rank's experts multiply in each segment of an RRE layer, padding included."""
    room = room_of(config)["own"].arrived  # of the rank if dropless, else of each of its experts
    return room if dispatch_layout(config) == "dropless" else active_entries(config) * room
