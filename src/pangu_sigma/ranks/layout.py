"""The layout of ranks: their coordinates, and the data, layers and experts of each. Pure Python, without MindSpore or a device.

Shape suffixes: B sequences of a batch, A' entries of the active list of a rank, C capacity.

A rank has stage, group, expert, data and tensor coordinates; the last varies fastest. The paper's layout on 512 ranks:

    rank = (((stage · 4 + group) · 16 + expert) · 1 + data) · 8 + tensor       1 stage × 4 groups × 16 × 1 × 8

* the ranks of a stage have its layers; all that follows is about the ranks of one stage;
* the 8 ranks of a tensor group share a host and every matrix;
* tokens of a group's domains travel among its 16 expert ranks, and to no other group;
* the dense layers see all but the tensor axis as data parallelism, 64 ways.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pangu_sigma.chips import CHIP_DATA
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.npu.capacity import Capacity, DispatchLayout
from pangu_sigma.sections import ParallelConfig, Segment

Room = dict[Segment, Capacity]
"""Limits on the rows that ranks exchange, for each kind of segments."""

AXES = ("stages", "groups", "expert", "data", "tensor")
"""Keys of the parallel section that count ranks; the first varies slowest."""


def axes_text(parallel: ParallelConfig) -> str:
    """Return the layout as text, such as `groups=4 · expert=16 · data=1 · tensor=8`, with stages if there are several."""
    axes = {name: getattr(parallel, name) for name in AXES}
    return " · ".join(f"{name}={size}" for name, size in axes.items() if name != "stages" or size > 1)


@dataclass(frozen=True)
class RankCoordinates:
    """Coordinates of a rank in the layout, one on each axis."""

    stage: int
    group: int
    expert: int
    data: int
    tensor: int


class Layout:
    """The ranks of a run as a grid over the parallel axes."""

    def __init__(self, parallel: ParallelConfig):
        self.ranks = parallel.ranks
        self._grid = np.arange(self.ranks).reshape([getattr(parallel, name) for name in AXES])

    def coordinates(self, rank: int) -> RankCoordinates:
        """Return the coordinates of a rank."""
        return RankCoordinates(*(int(i) for i in np.unravel_index(rank, self._grid.shape)))

    def peers(self, rank: int, *axes: str) -> list[int]:
        """Return the ranks whose coordinates differ from those of `rank` on `axes` only, `rank` included, ascending."""
        own = np.unravel_index(rank, self._grid.shape)
        index = tuple(slice(None) if name in axes else own[i] for i, name in enumerate(AXES))
        return sorted(self._grid[index].ravel().tolist())

    def groups(self, *axes: str) -> np.ndarray:
        """Return all groups of ranks that differ in these axes only, [groups, ranks of each], the ranks ascending."""
        inner = [i for i, name in enumerate(AXES) if name in axes]
        size = math.prod(self._grid.shape[i] for i in inner)
        return np.moveaxis(self._grid, inner, range(-len(inner), 0)).reshape(-1, size)


def layers_of_stage(config: Config, stage: int) -> range:
    """Return the layers of the network that a pipeline stage runs: equally many on each, and one more on the first stages."""
    each, more = divmod(config.model.layers, config.parallel.stages)
    first = stage * each + min(stage, more)
    return range(first, first + each + (stage < more))


def rre_layers_of_stage(config: Config, stage: int) -> list[int]:
    """Return the RRE layers of a pipeline stage, by their numbers among all RRE layers."""
    dense = config.model.dense_layers
    return [layer - dense for layer in layers_of_stage(config, stage) if layer >= dense]


def stages_of_host(parallel: ParallelConfig, host: int, size: int) -> list[int]:
    """Return the pipeline stage of each rank of host number `host`, which has `size` devices."""
    ranks = range(host * size, min((host + 1) * size, parallel.ranks))
    return [rank // parallel.stage_ranks for rank in ranks]


@dataclass(frozen=True)
class Share:
    """The data and the experts of one rank.

    sets: numbers of the domain sets (`domains.domain_sets`) whose text the rank's group trains on.
    segments: segments of the RRE layers of the rank's stage, by their numbers among those of all RRE layers.
    held: ids of the experts that the rank stores in each segment of a kind, ascending. Own ones are divided among groups and expert
        ranks; of common ones each group has a copy, which its expert ranks divide.
    """

    sets: tuple[int, ...]
    segments: list[int]
    held: dict[Segment, np.ndarray]


def share_of(config: Config, rank: int) -> Share:
    """Return the share of `rank`: its data and its experts. Raises ConfigError if the rank is outside the layout."""
    parallel = config.parallel
    if not 0 <= rank < parallel.ranks:
        raise ConfigError(f"rank {rank} does not exist: the parallel section lays out {parallel.ranks} ranks")
    at, sets = Layout(parallel).coordinates(rank), config.domain_sets
    per_group, experts = len(sets) // parallel.groups, config.model.experts_per_domain
    mine = tuple(range(at.group * per_group, (at.group + 1) * per_group))
    each = experts // parallel.expert
    first = np.array(sorted(domain for s in mine for domain in sets[s])) * experts + at.expert * each
    held: dict[Segment, np.ndarray] = {"own": (first[:, None] + np.arange(each)).ravel()}
    if config.model.common_experts:
        held["common"] = np.split(np.arange(config.model.common_experts), parallel.expert)[at.expert]
    return Share(
        sets=mine,
        segments=[n for layer in rre_layers_of_stage(config, at.stage) for n in config.model.segments_of(layer)],
        held=held,
    )


def writes_experts(config: Config, rank: int, kind: Segment) -> bool:
    """Return True if the rank writes its experts of segments of this kind to a checkpoint: the first of the ranks that store the
    same ones does. Ranks of a tensor group divide each of them."""
    at = Layout(config.parallel).coordinates(rank)
    return at.data == 0 and (kind == "own" or at.group == 0)


def data_rank_of_sequences(config: Config) -> np.ndarray:
    """Return, for each sequence of a batch, the data-parallel index (`data_rank_of`) of the ranks that train on it, [B]."""
    data, parallel = config.data, config.parallel
    groups = np.arange(data.domains_per_step) % data.domain_sets // (data.domain_sets // parallel.groups)
    of_group, sequences = parallel.expert * parallel.data, config.train.batch_size // data.domains_per_step
    return (groups[:, None] * of_group + np.arange(sequences) // (sequences // of_group)).ravel()


def data_rank_of(config: Config, rank: int) -> int:
    """Return the data-parallel index of a rank, counted over all groups of its stage; it is the same in a tensor group."""
    return rank % config.parallel.stage_ranks // config.parallel.tensor


def active_entries(config: Config, kind: Segment = "own") -> int:
    """Return the length of a segment's list of active experts on one rank; without ECSS, and if they are common, every stored
    expert has an entry."""
    owners = config.parallel.expert * (config.parallel.groups if kind == "own" else 1)
    return config.active_of(kind) // owners


def entries_of_segments(config: Config) -> list[int]:
    """Return the length of the list of active experts on one rank, for each segment of all RRE layers."""
    return [active_entries(config, kind) for kind in config.model.routed]


def active_in_group(config: Config, kind: Segment = "own") -> int:
    """Return how many experts of a segment a group of ranks uses in a step: all of the domains that it trains on, or all common."""
    if kind == "common":
        return config.model.common_experts
    return config.data.domains_per_step * config.model.experts_per_domain // config.parallel.groups


def tokens_of_rank(config: Config) -> int:
    """Return T, the tokens of a rank in one pass; ranks of a tensor group have the same tokens."""
    parallel = config.parallel
    return config.train.batch_size // (parallel.stage_ranks // parallel.tensor) * config.model.seq_length


def capacity(config: Config, kind: Segment = "own") -> int:
    """Return C, the most rows that a rank may send to one expert: `capacity_factor` times an even share of the rank's tokens,
    raised by `as_many_rows`."""
    sent = config.parallel.capacity_factor * tokens_of_rank(config)
    return as_many_rows(config, {k: math.ceil(sent / active_in_group(config, k)) for k in config.model.kinds})[kind]


def as_many_rows(config: Config, rows: dict[Segment, int]) -> dict[Segment, int]:
    """Return numbers of rows for one expert, by the kind of its segment, raised until all experts of a rank have equally many
    together in segments of each kind. Then the arrays of their plans are equally long (our choice). rows: the least numbers."""
    entries = {kind: active_entries(config, kind) for kind in rows}
    unit = math.lcm(*entries.values())
    together = max(math.ceil(each * entries[kind] / unit) for kind, each in rows.items()) * unit
    return {kind: together // count for kind, count in entries.items()}


def dispatch_layout(config: Config, ascend: bool = False) -> DispatchLayout:
    """Return the layout of a run's routing plans. ascend: True for training on NPUs, where the chip decides.

    With stages every chip has the layout of 910A, because the other one needs a Morph (an operator that wraps a graph): if a weight
    goes into one, MindSpore 2.9 adds gradients of micro-batches in a circle, and does not compile the graph.
    """
    if ascend:
        return "dropless" if CHIP_DATA[config.parallel.chip].dropless and config.parallel.stages == 1 else "compacted"
    return "all_to_all" if config.parallel.expert > 1 else "local"


def gather_operator(config: Config) -> Literal["ours", "cann"]:
    """Return whose operator gathers rows on NPUs: that of `parallel.gather`, by default CANN's in the dropless layout, whose graph
    spells out the work of one rank, and else ours, because CANN's cannot be restricted to the rows of its rank."""
    return config.parallel.gather or ("cann" if dispatch_layout(config, ascend=True) == "dropless" else "ours")


def even_rows_received(config: Config, layout: DispatchLayout, kind: Segment = "own") -> float:
    """Return how many rows arrive at each of a rank's experts under an even load; if dropless, at all of them together."""
    return tokens_of_rank(config) / (1 if layout == "dropless" else active_entries(config, kind))


def room_of(config: Config, layout: DispatchLayout) -> Room:
    """Return the limits of a dispatch layout by the configuration, for each kind of segments: on the rows that a rank sends to an
    expert, and receives."""
    kinds = config.model.kinds
    if layout in ("local", "all_to_all"):
        return {kind: Capacity(capacity(config, kind)) for kind in kinds}
    factor = config.parallel.arrival_factor or config.parallel.capacity_factor
    arrived = {kind: math.ceil(factor * even_rows_received(config, layout, kind)) for kind in kinds}
    if layout == "dropless":
        return {kind: Capacity(None, rows) for kind, rows in arrived.items()}
    return {kind: Capacity(capacity(config, kind), rows) for kind, rows in as_many_rows(config, arrived).items()}


def exchanged_rows(config: Config) -> int:
    """Return R, the number of rows that an Ascend rank sends in each segment of an RRE layer: as many as the capacity for each
    expert of its group; in the layout dropless, one for each of its tokens, and an empty one."""
    dropless = dispatch_layout(config, ascend=True) == "dropless"
    return tokens_of_rank(config) + 1 if dropless else active_in_group(config) * capacity(config)


def multiplied_rows(config: Config) -> int:
    """Return W, the number of rows that an Ascend rank's experts multiply in each segment of an RRE layer, padding included."""
    layout = dispatch_layout(config, ascend=True)
    room = room_of(config, layout)["own"].arrived
    assert room is not None, "on Ascend rows are brought together"
    return room if layout == "dropless" else active_entries(config) * room
