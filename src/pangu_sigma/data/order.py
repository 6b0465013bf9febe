"""Sampling order of training: a function of the seed and of the number of samples taken of each domain, which a `Cursor` holds.

The order does not depend on the number of processes or on when a run was stopped. How the samples of a domain are shuffled is a key
of the run, `data.shuffle`; runs of before that key have a permutation in memory.

Shape suffix: M blocks (one domain each).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.data.shuffle import KeyedShuffle
from pangu_sigma.domains import domain_sets


@dataclass
class Cursor:
    """Position in the training data: the number of samples taken so far of each domain, by domain index."""

    taken: list[int]


class Shuffle(Protocol):
    """Interface of a permutation of 0 … n - 1."""

    def __getitem__(self, index: int, /) -> int:
        """Return what is at a position."""


class SampleOrder:
    """Sampler of training: picks the domains of a batch by weight, and shuffles the samples of each domain in every epoch."""

    def __init__(self, config: Config, counts: list[int], weights: Sequence[float] | None = None):
        """counts: samples of each domain. weights: sampling weight of each, 0 to leave it out; with None the configuration's."""
        self._counts, self._seed, self._keyed = counts, config.seed, config.data.shuffle == "keyed"
        self._blocks = config.data.domains_per_step
        self._per_block = config.train.batch_size // self._blocks * config.train.accumulation
        self._weights = np.array([d.weight for d in config.domains] if weights is None else weights)
        self._sets = [np.array(members) for members in domain_sets(config)]
        self._shuffles: dict[tuple[int, int], Shuffle] = {}

    def start(self) -> Cursor:
        """Return the data position (`Cursor`) before the first sample."""
        return Cursor([0] * len(self._counts))

    def take(self, cursor: Cursor) -> list[tuple[int, list[int]]]:
        """Return (domain, sample numbers) of each block of the next update, and advance the cursor past it."""
        taken = []
        for domain in self._choose(cursor):
            first = cursor.taken[domain]
            cursor.taken[domain] += self._per_block
            taken.append((domain, [self.sample(domain, n) for n in range(first, cursor.taken[domain])]))
        return taken

    def sample(self, domain: int, number: int) -> int:
        """Return the index of the sample that training takes from a domain as its `number`-th, counted from 0 over all epochs."""
        epoch, at = divmod(number, self._counts[domain])
        if (domain, epoch) not in self._shuffles:
            self._shuffles = {key: shuffle for key, shuffle in self._shuffles.items() if key[0] != domain}
            self._shuffles[domain, epoch] = self._shuffle(self._counts[domain], [self._seed, domain, epoch])
        return int(self._shuffles[domain, epoch][at])

    def _shuffle(self, count: int, key: list[int]) -> Shuffle:
        return KeyedShuffle(count, key) if self._keyed else np.random.default_rng(key).permutation(count)

    def _choose(self, cursor: Cursor) -> list[int]:
        """Return the domains of the next blocks: each time that of its set which is furthest behind its weight; ties are drawn."""
        weights = self._weights
        drawn = np.array(cursor.taken) // self._per_block
        rng = np.random.default_rng([self._seed, int(drawn.sum())])
        chosen_M = np.zeros(self._blocks, int)
        for m in range(self._blocks):
            members, chance = self._sets[m % len(self._sets)], rng.random(len(weights))
            due = (drawn[members].sum() + 1) * weights[members] / weights[members].sum()
            behind = due - drawn[members] + 1e-6 * chance[members]
            chosen_M[m] = members[behind.argmax()]
            drawn[chosen_M[m]] += 1
        for s in range(len(self._sets)):
            chosen_M[s :: len(self._sets)].sort()
        return chosen_M.tolist()
