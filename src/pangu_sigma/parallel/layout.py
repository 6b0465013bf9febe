"""The layout of ranks: coordinates of each, and what it holds. Pure Python: neither MindSpore nor a device is needed.

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
from pangu_sigma.config import Config, ConfigError, ParallelConfig
from pangu_sigma.domains import domain_sets
from pangu_sigma.rre.capacity import DispatchLayout, Room

AXES = ("stages", "groups", "expert", "data", "tensor")
"""Keys of the parallel section that count ranks, the slowest first."""


def axes_text(parallel: ParallelConfig) -> str:
    """The layout in words, such as `groups=4 · expert=16 · data=1 · tensor=8`; stages where there are some."""
    axes = {name: getattr(parallel, name) for name in AXES}
    return " · ".join(f"{name}={size}" for name, size in axes.items() if name != "stages" or size > 1)


@dataclass(frozen=True)
class RankCoordinates:
    """Coordinates of a rank."""

    stage: int
    group: int
    expert: int
    data: int
    tensor: int


class Layout:
    """The ranks of a run."""

    def __init__(self, parallel: ParallelConfig):
        self.axes = {name: getattr(parallel, name) for name in AXES}
        self.ranks = parallel.ranks
        self._grid = np.arange(self.ranks).reshape(*self.axes.values())

    def coordinates(self, rank: int) -> RankCoordinates:
        return RankCoordinates(*(int(i) for i in np.unravel_index(rank, self._grid.shape)))

    def peers(self, rank: int, *axes: str) -> list[int]:
        """Ranks that differ from `rank` in no other axis than these, itself included, ascending."""
        names, own = list(self.axes), np.unravel_index(rank, self._grid.shape)
        index = tuple(slice(None) if name in axes else own[i] for i, name in enumerate(names))
        return sorted(self._grid[index].ravel().tolist())


def layers_of_stage(config: Config, stage: int) -> range:
    """The layers of the network that run on the ranks of a stage: equally many on each, and one more on the first stages."""
    each, more = divmod(config.model.layers, config.parallel.stages)
    first = stage * each + min(stage, more)
    return range(first, first + each + (stage < more))


def rre_layers_of_stage(config: Config, stage: int) -> list[int]:
    """The RRE layers of a stage, by their numbers among all RRE layers."""
    dense = config.model.dense_layers
    return [layer - dense for layer in layers_of_stage(config, stage) if layer >= dense]


def stages_of_host(parallel: ParallelConfig, host: int, size: int) -> list[int]:
    """The stage of each rank of a host of `size` devices."""
    ranks = range(host * size, min((host + 1) * size, parallel.ranks))
    return [rank // parallel.stage_ranks for rank in ranks]


@dataclass(frozen=True)
class Share:
    """The data and the experts of one rank.

    sets: domain sets of its group.
    taker, takers: number of the rank among the ranks of its group that take different sequences of each block, and how many these
        are.
    layers: RRE layers of its stage, by their numbers among all RRE layers.
    held: ids of the experts that it stores in each of them, ascending.
    """

    sets: tuple[int, ...]
    taker: int
    takers: int
    layers: list[int]
    held: np.ndarray


def share_of(config: Config, rank: int) -> Share:
    """The share of `rank`. Raises ConfigError for a rank outside the layout."""
    parallel = config.parallel
    if not 0 <= rank < parallel.ranks:
        raise ConfigError(f"rank {rank} does not exist: the parallel section lays out {parallel.ranks} ranks")
    at, sets = Layout(parallel).coordinates(rank), domain_sets(config)
    per_group, experts = len(sets) // parallel.groups, config.model.experts_per_domain
    mine = tuple(range(at.group * per_group, (at.group + 1) * per_group))
    each = experts // parallel.expert
    first = np.array(sorted(domain for s in mine for domain in sets[s])) * experts + at.expert * each
    return Share(
        sets=mine,
        taker=at.expert * parallel.data + at.data,
        takers=parallel.expert * parallel.data,
        layers=rre_layers_of_stage(config, at.stage),
        held=(first[:, None] + np.arange(each)).ravel(),
    )


def takers(config: Config) -> np.ndarray:
    """The taker of each sequence of a batch, [B]: the number that `taker_of` gives a rank."""
    data, parallel = config.data, config.parallel
    groups = np.arange(data.domains_per_step) % data.domain_sets // (data.domain_sets // parallel.groups)
    of_group, sequences = parallel.expert * parallel.data, config.train.batch_size // data.domains_per_step
    return (groups[:, None] * of_group + np.arange(sequences) // (sequences // of_group)).ravel()


def taker_of(config: Config, rank: int) -> int:
    """Number of a rank among all that take different sequences: group · takers + taker, as in its `Share`.

    Ranks of a tensor group take the same sequences and have the same number.
    """
    return rank % config.parallel.stage_ranks // config.parallel.tensor


def active_entries(config: Config) -> int:
    """A', entries of the active list of a layer on one rank; without ECSS each expert that it stores has one."""
    return config.active_experts // (config.parallel.groups * config.parallel.expert)


def active_in_group(config: Config) -> int:
    """Experts of a layer among which a group's tokens are divided: those of the domains of its blocks."""
    return config.data.domains_per_step * config.model.experts_per_domain // config.parallel.groups


def tokens_of_rank(config: Config) -> int:
    """T, tokens that a rank's network sees in a pass; ranks of a tensor group see the same."""
    parallel = config.parallel
    return config.train.batch_size // (parallel.stage_ranks // parallel.tensor) * config.model.seq_length


def capacity(config: Config) -> int:
    """C, the rows that a rank can send to one expert: `capacity_factor` times an even share of the rank's tokens."""
    return math.ceil(config.parallel.capacity_factor * tokens_of_rank(config) / active_in_group(config))


def dispatch_layout(config: Config, ascend: bool = False) -> DispatchLayout:
    """The layout of the routing plans of a run. ascend: True for training on NPUs, where the chip decides.

    With stages every chip has the one of 910A: MindSpore 2.9 adds gradients of micro-batches in a circle if a weight goes into a
    Morph, and compiles no such graph.
    """
    if ascend:
        return "dropless" if CHIP_DATA[config.parallel.chip].dropless and config.parallel.stages == 1 else "compacted"
    return "all_to_all" if config.parallel.expert > 1 else "local"


def gather_operator(config: Config) -> Literal["ours", "cann"]:
    """The operator that moves rows on NPUs (`parallel.gather`). CANN's cannot be declared to keep to the rows of its rank, so it is
    for graphs that say themselves what a rank does."""
    return config.parallel.gather or ("cann" if dispatch_layout(config, ascend=True) == "dropless" else "ours")


def even_arrival(config: Config, layout: DispatchLayout) -> float:
    """The rows that would arrive for each expert of a rank if loads were even; in the dropless layout for all of them."""
    return tokens_of_rank(config) / (1 if layout == "dropless" else active_entries(config))


def room_of(config: Config, layout: DispatchLayout) -> Room:
    """The room for rows that the configuration gives in a layout."""
    if layout in ("local", "all_to_all"):
        return Room(capacity(config))
    factor = config.parallel.arrival_factor or config.parallel.capacity_factor
    arrived = math.ceil(factor * even_arrival(config, layout))
    return Room(None if layout == "dropless" else capacity(config), arrived)


def exchanged_rows(config: Config) -> int:
    """R, rows that an Ascend rank sends in an RRE layer: with a capacity the empty ones, too, and without a single one."""
    dropless = dispatch_layout(config, ascend=True) == "dropless"
    return tokens_of_rank(config) + 1 if dropless else active_in_group(config) * capacity(config)


def multiplied_rows(config: Config) -> int:
    """W, rows that the experts of an Ascend rank multiply in an RRE layer, empty ones included."""
    layout = dispatch_layout(config, ascend=True)
    room = room_of(config, layout).arrived
    assert room is not None, "on Ascend rows are brought together"
    return room if layout == "dropless" else active_entries(config) * room
