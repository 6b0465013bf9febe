"""The layout of ranks: their coordinates, and the data, layers and experts of each. Pure Python, without MindSpore or a device.

Shape suffixes: B sequences of a batch, D domains of a rank's group.

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

import numpy as np

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.rre.plan import RoutedSegment
from pangu_sigma.sections import ParallelConfig, Segment

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
        """Return the ranks whose coordinates differ from `rank`'s on `axes` only, `rank` included, ascending."""
        coordinates = np.unravel_index(rank, self._grid.shape)
        index = tuple(slice(None) if name in axes else coordinates[i] for i, name in enumerate(AXES))
        return sorted(self._grid[index].ravel().tolist())

    def groups(self, *axes: str) -> np.ndarray:
        """Return all groups of ranks that differ in these axes only, [groups, ranks of a group], the ranks ascending."""
        positions = [i for i, name in enumerate(AXES) if name in axes]
        size = math.prod(self._grid.shape[i] for i in positions)
        # the axes become the last ones of the grid, so that the ranks of a group are neighbours
        return np.moveaxis(self._grid, positions, range(-len(positions), 0)).reshape(-1, size)


def layers_of_stage(config: Config, stage: int) -> range:
    """Return the layers of the network that a pipeline stage runs: equally many on each, and one more on the first stages."""
    layers_per_stage, longer_stages = divmod(config.model.layers, config.parallel.stages)
    first = stage * layers_per_stage + min(stage, longer_stages)
    return range(first, first + layers_per_stage + (stage < longer_stages))


def rre_layers_of_stage(config: Config, stage: int) -> list[int]:
    """Return the RRE layers of a pipeline stage, by their numbers among all RRE layers."""
    dense = config.model.dense_layers
    return [layer - dense for layer in layers_of_stage(config, stage) if layer >= dense]


@dataclass(frozen=True)
class Share:
    """The data and the experts of one rank.

    sets: numbers of the domain sets (`domains.domain_sets`) whose text the rank's group trains on.
    routed: all N segments of the RRE layers, as the rank has them. Own experts are divided among groups and expert ranks; of common
        experts each group has a copy, which its expert ranks divide.
    stored: the segments in layers of the rank's stage.
    """

    sets: tuple[int, ...]
    routed: list[RoutedSegment]
    stored: list[RoutedSegment]


def share_of(config: Config, rank: int) -> Share:
    """Return the share of `rank`: its data and its experts. Raises ConfigError if the rank is outside the layout."""
    parallel, model = config.parallel, config.model
    if not 0 <= rank < parallel.ranks:
        raise ConfigError(f"rank {rank} does not exist: the parallel section lays out {parallel.ranks} ranks")
    coordinates, sets = Layout(parallel).coordinates(rank), config.domain_sets
    sets_per_group, experts_per_rank = len(sets) // parallel.groups, model.experts_per_domain // parallel.expert
    group_sets = tuple(range(coordinates.group * sets_per_group, (coordinates.group + 1) * sets_per_group))
    domains_D = np.array(sorted(domain for number in group_sets for domain in sets[number]))
    # the rank's first expert of each domain
    first_D = domains_D * model.experts_per_domain + coordinates.expert * experts_per_rank
    # ids of the experts that the rank stores, by the kind of segment
    ids: dict[Segment, np.ndarray] = {"own": (first_D[:, None] + np.arange(experts_per_rank)).ravel()}
    if model.common_experts:
        ids["common"] = np.split(np.arange(model.common_experts), parallel.expert)[coordinates.expert]
    routed = []
    for n, kind in enumerate(model.routed):
        experts, entries = config.stored_experts(kind), active_entries(config, kind)
        routed.append(RoutedSegment(n, kind, experts, ids[kind], entries, config.learns(kind)))
    stored = [routed[n] for layer in rre_layers_of_stage(config, coordinates.stage) for n in model.segments_of(layer)]
    return Share(group_sets, routed, stored)


def writes_experts(config: Config, rank: int, kind: Segment) -> bool:
    """Return True if the rank writes its experts of segments of this kind to a checkpoint. Of the ranks that store the same experts
    the first one writes. Ranks of a tensor group divide every expert, and all of them write their parts."""
    coordinates = Layout(config.parallel).coordinates(rank)
    return coordinates.data == 0 and (kind == "own" or coordinates.group == 0)


def data_rank_of_sequences(config: Config) -> np.ndarray:
    """Return, for each sequence of a batch, the data-parallel index (`data_rank_of`) of the ranks that train on it, [B].

    The blocks of a batch belong to the domain sets in turn. A group of ranks has equally many neighbouring sets, and its ranks
    divide the sequences of each block evenly."""
    data, parallel = config.data, config.parallel
    set_M = np.arange(data.domains_per_step) % data.domain_sets  # of each of the M blocks
    group_M = set_M // (data.domain_sets // parallel.groups)
    ranks_per_group, sequences = parallel.expert * parallel.data, config.train.batch_size // data.domains_per_step
    return (group_M[:, None] * ranks_per_group + np.arange(sequences) // (sequences // ranks_per_group)).ravel()


def data_rank_of(config: Config, rank: int) -> int:
    """Return the data-parallel index of a rank, counted over all groups of its stage; it is the same in a tensor group."""
    return rank % config.parallel.stage_ranks // config.parallel.tensor


def takers_of_group(config: Config, rank: int) -> np.ndarray:
    """Return the data-parallel indices (`data_rank_of`) of the ranks of a rank's group."""
    ranks_per_group = config.parallel.expert * config.parallel.data
    return data_rank_of(config, rank) // ranks_per_group * ranks_per_group + np.arange(ranks_per_group)


def active_entries(config: Config, kind: Segment = "own") -> int:
    """Return the length of a segment's list of active experts on one rank. Every stored expert has an entry if the segment is
    common, or without ECSS."""
    # own experts are divided among groups and expert ranks, common ones among the expert ranks of each group
    dividing_ranks = config.parallel.expert * (config.parallel.groups if kind == "own" else 1)
    return config.active_of(kind) // dividing_ranks


def active_in_group(config: Config, kind: Segment = "own") -> int:
    """Return how many experts of a segment a group of ranks uses in a step: all own experts of the domains of the group's blocks,
    or all common experts."""
    if kind == "common":
        return config.model.common_experts
    return config.data.domains_per_step * config.model.experts_per_domain // config.parallel.groups
