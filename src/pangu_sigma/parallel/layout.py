"""Which rank is where, and what it holds. Pure Python: neither MindSpore nor a device is needed.

A rank is group, expert, data and tensor coordinates; the last varies fastest. In the paper's layout on 512 ranks (spec §3.5):

    rank = ((group · 16 + expert) · 1 + data) · 8 + tensor       4 groups × 16 × 1 × 8

* the 8 ranks of a tensor group share a host and every matrix;
* tokens of a group's domains travel among its 16 expert ranks, and to no other group;
* the dense layers see all but the tensor axis as data parallelism, 64 ways.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pangu_sigma.config import Config, ConfigError, ParallelConfig
from pangu_sigma.domains import domain_sets


@dataclass(frozen=True)
class Place:
    """Coordinates of a rank."""

    group: int
    expert: int
    data: int
    tensor: int


class Layout:
    """The ranks of a run."""

    def __init__(self, parallel: ParallelConfig):
        self.axes = {name: getattr(parallel, name) for name in ("groups", "expert", "data", "tensor")}
        self.ranks = parallel.ranks
        self._grid = np.arange(self.ranks).reshape(*self.axes.values())

    def place(self, rank: int) -> Place:
        return Place(*(int(i) for i in np.unravel_index(rank, self._grid.shape)))

    def peers(self, rank: int, *axes: str) -> list[int]:
        """Ranks, this one included, that differ from `rank` in no other axis than these, ascending."""
        names, place = list(self.axes), np.unravel_index(rank, self._grid.shape)
        index = tuple(slice(None) if name in axes else place[i] for i, name in enumerate(names))
        return sorted(self._grid[index].ravel().tolist())

    @property
    def dense_replicas(self) -> int:
        """Ranks that hold the same part of a dense matrix and see different sequences."""
        return self.ranks // self.axes["tensor"]


@dataclass(frozen=True)
class Share:
    """What one rank takes of the data and of the experts.

    sets: domain sets of its group. part, parts: its part of the sequences of each of the group's blocks.
    held: ids of the experts it stores in every RRE layer, ascending.
    """

    sets: tuple[int, ...]
    part: int
    parts: int
    held: np.ndarray


def share_of(config: Config, rank: int) -> Share:
    """The share of `rank`. Raises ConfigError for a rank outside the layout."""
    parallel = config.parallel
    if not 0 <= rank < parallel.ranks:
        raise ConfigError(f"rank {rank} does not exist: the parallel section lays out {parallel.ranks} ranks")
    place, sets = Layout(parallel).place(rank), domain_sets(config)
    per_group, experts = len(sets) // parallel.groups, config.model.experts_per_domain
    mine = tuple(range(place.group * per_group, (place.group + 1) * per_group))
    each = experts // parallel.expert
    first = np.array(sorted(domain for s in mine for domain in sets[s])) * experts + place.expert * each
    return Share(
        sets=mine,
        part=place.expert * parallel.data + place.data,
        parts=parallel.expert * parallel.data,
        held=(first[:, None] + np.arange(each)).ravel(),
    )
