"""Held-out batches: the samples of each domain in file order, so that the loss of a domain is a mean over the same text every time.

Shape suffixes: G micro-batches of an update, B sequences of one, S sequence, M blocks of a batch, Q sequences of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from pangu_sigma.data.batches import Batch, Batches
from pangu_sigma.parallel.layout import capacity, share_of, takers


class HeldOut:
    """The held-out batches of the domains of one rank's group: this rank's share of them, in two forms with the same samples.

    `of_domain` is for a graph of the forward pass alone; `like_training` is for the graph of a training step.
    """

    def __init__(self, batches: Batches, most: int):
        """batches: those of the held-out split. most: a domain gives at most this many times `train.batch_size` samples."""
        self._batches, self._config = batches, batches.config
        everybody = takers(self._config)
        self._takers_B = everybody[np.isin(everybody, batches.planner.group)]
        self._blocks = self._config.data.domains_per_step // self._config.parallel.groups
        self._per_block = self._config.train.batch_size // self._config.data.domains_per_step
        self._counts = batches.samples.counts
        self._wanted = [min(count, most * self._config.train.batch_size) for count in self._counts]

    @cached_property
    def domains(self) -> list[int]:
        """Domains of the rank's group: set by set, each ascending."""
        sets = self._batches.domain_sets
        return [domain for s in share_of(self._config, self._batches.rank).sets for domain in sets[s]]

    def of_domain(self, domain: int) -> list[Batch]:
        """This rank's share of the batches of one domain, all of whose blocks are of it; none for a domain of another group.

        The last batch is filled up with samples of weight 0. No row is dropped: the capacity is what the batches of all domains of
        the group need.
        """
        if domain not in self.domains:
            return []
        domains_M = np.full(self._blocks, domain)
        return [
            self._batches.assemble_share(
                self._ids(domains_M, numbers_MGQ),
                domains_M,
                self._takers_B,
                self._needed_capacity,
                _by_pass(numbers_MGQ < self._wanted[domain]),
            )
            for numbers_MGQ in self._numbers(domain)
        ]

    def like_training(self) -> list[Batch]:
        """Batches that the graph of training takes: as many micro-batches, a domain for each block, and as much room for an expert.

        Where a domain has no more samples, some of weight 0 fill its block. Raises CapacityError as training does.
        """
        passes, found = self._config.train.accumulation, []
        for first in range(0, len(self.domains), self._blocks):
            own = self.domains[first : first + self._blocks]
            wanted_M = np.array([self._wanted[d] for d in own] + [0] * (self._blocks - len(own)))
            domains_M = np.array([*own, *(d for d in self.domains if d not in own)][: self._blocks])
            size = passes * self._per_block
            for start in range(0, wanted_M.max(), size):
                numbers_GQ = np.arange(start, start + size).reshape(passes, -1)
                numbers_MGQ = np.tile(numbers_GQ, (self._blocks, 1, 1))
                counted_GB = _by_pass(numbers_MGQ < wanted_M[:, None, None])
                ids_GBS1, rows = self._ids(domains_M, numbers_MGQ), capacity(self._config)
                found.append(self._batches.assemble_share(ids_GBS1, domains_M, self._takers_B, rows, counted_GB))
        return found

    def _numbers(self, domain: int) -> Iterator[np.ndarray]:
        """Sample numbers of each batch of one domain, [M, 1, Q]; some past the last that is wanted."""
        size = self._blocks * self._per_block
        for first in range(0, self._wanted[domain], size):
            yield np.arange(first, first + size).reshape(self._blocks, 1, -1)

    def _ids(self, domains_M: np.ndarray, numbers_MGQ: np.ndarray) -> np.ndarray:
        """Ids [G, B, S + 1] of the samples of each block; past the end of a domain its last sample."""
        samples = self._batches.samples
        blocks = zip(domains_M.tolist(), numbers_MGQ, strict=True)
        ids = [samples.read(d, min(n, self._counts[d] - 1)) for d, numbers in blocks for n in numbers.ravel().tolist()]
        return _by_pass(np.stack(ids).reshape(*numbers_MGQ.shape, -1))

    @cached_property
    def _needed_capacity(self) -> int:
        """The capacity that the batches of all domains of the group need; 0 where the layout has none."""
        batches = self._batches
        if batches.planner.layout == "local" or not batches.table.layers:
            return 0
        most = 0
        for domain in self.domains:
            domains_M = np.full(self._blocks, domain)
            for numbers_MGQ in self._numbers(domain):
                experts_NGBS = batches.experts(self._ids(domains_M, numbers_MGQ)[..., :-1], domains_M)
                most = max(most, batches.planner.fullest(experts_NGBS, self._takers_B))
        return most


def _by_pass(of_blocks: np.ndarray) -> np.ndarray:
    """[M, G, Q, …] → [G, B, …]: the blocks of each micro-batch next to each other."""
    blocks, passes, per_block, *rest = of_blocks.shape
    return of_blocks.swapaxes(0, 1).reshape(passes, blocks * per_block, *rest)
