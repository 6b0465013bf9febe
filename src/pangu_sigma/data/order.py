"""Sampling order of training: a function of the seed and of the number of samples taken of each domain (`Cursor`), whatever the
number of processes and of restarts. `data.shuffle` says how the samples of a domain are shuffled. The mixture of domains has
sampling weights by phase (`data.phases`), adapted to the size of each domain (`data.temperature`).

Shape suffixes: P phases, D domains, M blocks (one domain each) or domains of a set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.data.split_mix import split_mix
from pangu_sigma.sections import PhaseConfig

MANY_EPOCHS = 4
"""Number of epochs of a domain above which a run is warned of: up to four, repeated text trains nearly as well as new text
(Muennighoff et al. 2023, arXiv 2305.16264)."""

_ROUNDS = 16
"""Number of rounds. Our choice: four are enough in theory for large n; after twelve the permutations of five numbers are not yet
equally frequent."""


@dataclass
class Cursor:
    """Position in the training data: the number of samples taken so far of each domain, by domain index.

    begun: number of samples of each domain that the earlier run had taken which this run extends; empty for a run that began anew.
    The mixture of domains counts from these numbers, so that a new domain does not have to catch up with the old domains."""

    taken: list[int]
    begun: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Mixture:
    """Sampling weights of all phases. begins_P: number of steps before each phase, ascending from 0. weights_PD: weight of each
    domain in each phase, 0 for a domain that the phase leaves out."""

    begins_P: np.ndarray
    weights_PD: np.ndarray

    @classmethod
    def of(cls, config: Config, sizes_D: Sequence[int] | np.ndarray) -> Mixture:
        """Return the mixture of a configuration. sizes_D: size of each domain, such as its number of training samples. With
        `data.temperature` T, each weight is multiplied by size^(1/T). It is our choice to multiply and not to replace the weights:
        with T = 1 a weight of 2 means twice as many epochs, and with a large T twice as many samples."""
        phases = config.data.phases or [PhaseConfig(from_step=0)]
        weights_PD = np.array([_weights(config, phase) for phase in phases])
        if config.data.temperature is not None:
            weights_PD = weights_PD * (np.asarray(sizes_D) / max(sizes_D)) ** (1 / config.data.temperature)
        return cls(np.array([phase.from_step for phase in phases]), weights_PD)

    @classmethod
    def constant(cls, weights: Sequence[float]) -> Mixture:
        """Return the mixture of a single phase. weights: sampling weight of each domain, 0 to leave it out."""
        return cls(np.zeros(1, int), np.array([weights]))

    def active_D(self, step: int) -> np.ndarray:
        """Return which domains are trained on in the phase of a step, bool [D]. step: number of steps before it."""
        return np.asarray(self.weights_PD[np.searchsorted(self.begins_P, step, side="right") - 1] > 0)

    def due_M(self, members_M: np.ndarray, blocks: int, per_step: int) -> np.ndarray:
        """Return how many of the first `blocks` blocks of a set of domains each domain of the set should have, float [M].

        Every phase adds its number of blocks, times the domain's share of the weights. So a domain that begins with a phase is due
        nothing for earlier steps, and fractions of a block carry over to the next phase. members_M: domain indices of the set.
        per_step: number of blocks of the set in a step."""
        due_M = np.zeros(len(members_M))
        ends = [*(self.begins_P[1:] * per_step).tolist(), blocks]
        for begin, end, weights_D in zip((self.begins_P * per_step).tolist(), ends, self.weights_PD, strict=True):
            if begin < blocks:
                share_M = weights_D[members_M]
                due_M += (min(end, blocks) - begin) * share_M / share_M.sum()
        return due_M


def _weights(config: Config, phase: PhaseConfig) -> list[float]:
    if phase.weights is None:
        return [domain.weight for domain in config.domains]
    return [phase.weights.get(domain.name, 0.0) for domain in config.domains]


class SampleOrder:
    """Sampler of training: picks the domains of a batch by weight, and shuffles the samples of each domain in every epoch."""

    def __init__(self, config: Config, counts: list[int], weights: Sequence[float] | None = None):
        """counts: number of samples of each domain. weights: weight of each domain, 0 to leave it out; None: the configuration's
        mixture."""
        self._counts, self._seed, self._is_keyed = counts, config.seed, config.data.shuffle == "keyed"
        self._blocks_per_step = config.data.domains_per_step
        self._samples_per_block = config.train.batch_size // self._blocks_per_step * config.train.accumulation
        self._mixture = Mixture.of(config, counts) if weights is None else Mixture.constant(weights)
        self._sets = [np.array(members) for members in config.domain_sets]
        self._shuffles: dict[tuple[int, int], KeyedShuffle | np.ndarray] = {}

    def take(self, cursor: Cursor) -> list[tuple[int, list[int]]]:
        """Return the blocks of the next update, pairs of a domain and the samples to read, and advance the cursor past them."""
        blocks = []
        for domain in self._choose(cursor):
            first = cursor.taken[domain]
            cursor.taken[domain] += self._samples_per_block
            blocks.append((domain, [self.sample(domain, n) for n in range(first, cursor.taken[domain])]))
        return blocks

    def sample(self, domain: int, number: int) -> int:
        """Return the index of the sample that training takes from a domain as its `number`-th, counted from 0 over all epochs."""
        epoch, position = divmod(number, self._counts[domain])
        if (domain, epoch) not in self._shuffles:
            # a permutation may be large: only one epoch of each domain is in memory
            self._shuffles = {key: shuffle for key, shuffle in self._shuffles.items() if key[0] != domain}
            count, seeds = self._counts[domain], [self._seed, domain, epoch]
            shuffle = KeyedShuffle(count, seeds) if self._is_keyed else np.random.default_rng(seeds).permutation(count)
            self._shuffles[domain, epoch] = shuffle
        return int(self._shuffles[domain, epoch][position])

    def epochs(self, cursor: Cursor) -> list[float]:
        """Return how often the samples of each domain have been read; 0 for a domain without samples."""
        return [taken / max(count, 1) for taken, count in zip(cursor.taken, self._counts, strict=True)]

    def planned_epochs(self, steps: int) -> list[float]:
        """Return how often the samples of each domain will be read in the first `steps` steps of a run, by the mixture."""
        blocks_per_set, epochs = self._blocks_per_step // len(self._sets), [0.0] * len(self._counts)
        for members_M in self._sets:
            due_M = self._mixture.due_M(members_M, steps * blocks_per_set, per_step=blocks_per_set)
            for domain, due in zip(members_M, due_M, strict=True):
                epochs[domain] = float(due) * self._samples_per_block / max(self._counts[domain], 1)
        return epochs

    def _choose(self, cursor: Cursor) -> list[int]:
        """Return the domain of each block [M] of the next update. Block m belongs to domain set m modulo the number of sets, and
        gets the domain of the set whose number of blocks so far is furthest below what its weights ask for; ties are random."""
        taken_D = np.array(cursor.taken) - (np.array(cursor.begun) if cursor.begun else 0)
        blocks_D, sets = taken_D // self._samples_per_block, len(self._sets)
        active_D = self._mixture.active_D(int(taken_D.sum()) // (self._samples_per_block * self._blocks_per_step))
        rng = np.random.default_rng([self._seed, int(blocks_D.sum())])
        domains_M = np.zeros(self._blocks_per_step, int)
        for m in range(self._blocks_per_step):
            members, tie_break_D = self._sets[m % sets], 1e-6 * rng.random(len(taken_D))
            due = self._mixture.due_M(members, int(blocks_D[members].sum()) + 1, self._blocks_per_step // sets)
            lag = np.where(active_D[members], due - blocks_D[members] + tie_break_D[members], -np.inf)
            domains_M[m] = members[lag.argmax()]
            blocks_D[domains_M[m]] += 1
        domains_M.reshape(-1, sets).sort(axis=0)  # the blocks of a set are in the order of domains
        return domains_M.tolist()


class KeyedShuffle:
    """Permutation of 0 … count - 1 by a key that is computed and not stored. key: numbers >= 0, such as seed, domain and epoch.

    It is the same on every machine and in every version: it shuffles the samples of runs, which resume.

    A Feistel network permutes the numbers of b bits, 2^(b-1) < count ≤ 2^b: the upper half of the bits is changed by a function of
    the lower half, then the lower by the upper one, and so on, _ROUNDS times. A result that is not below count is put in again
    until it is (cycle walking), on average less than twice, which leaves a permutation of the numbers below count."""

    def __init__(self, count: int, key: Sequence[int]):
        """Cut the bits of a number into halves for a Feistel network, and draw a key for each of its rounds."""
        self._count = count
        bits = (count - 1).bit_length()  # of the numbers that the network permutes; the lower half has the odd one
        self._low_bits = bits - bits // 2
        self._low_mask, self._high_mask = (1 << self._low_bits) - 1, (1 << (bits // 2)) - 1
        self._keys: list[int] = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64).tolist()

    def __getitem__(self, index: int) -> int:
        """Return the number at position `index` of the shuffled numbers 0 … count - 1. Raises IndexError for no such position."""
        if not 0 <= index < self._count:
            raise IndexError(f"position {index} of {self._count}")
        while True:  # cycle walking: permute again until the number is below count
            high, low = index >> self._low_bits, index & self._low_mask
            for round_number, key in enumerate(self._keys):
                if round_number % 2:
                    low ^= split_mix(high, key) & self._low_mask
                else:
                    high ^= split_mix(low, key) & self._high_mask
            index = high << self._low_bits | low
            if index < self._count:
                return index


def repetitions(order: SampleOrder, names: Sequence[str], steps: int) -> list[str]:
    """Return a sentence for each domain that a run of `steps` steps reads more than `MANY_EPOCHS` times. names: of the domains."""
    return [
        f"{name}: {steps:,} steps read its text {epochs:.1f} times; above {MANY_EPOCHS} epochs repeated text teaches less than new "
        "text: prepare more of it, lower its weight, or set data.temperature"
        for name, epochs in zip(names, order.planned_epochs(steps), strict=True)
        if epochs > MANY_EPOCHS
    ]
