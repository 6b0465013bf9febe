"""Mixture of the domains in training: sampling weights by phase (`data.phases`), adapted to the size of each domain
(`data.temperature`).

Shape suffixes: P phases, D domains, M domains of a set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.sections import PhaseConfig


@dataclass(frozen=True)
class Mixture:
    """Sampling weights of all phases. begins_P: number of steps before each phase, ascending from 0. weights_PD: weight of each
    domain in each phase, 0 for a domain that the phase leaves out."""

    begins_P: np.ndarray
    weights_PD: np.ndarray

    @classmethod
    def of(cls, config: Config, sizes_D: Sequence[int] | np.ndarray) -> Mixture:
        """Return the mixture of a configuration. sizes_D: size of each domain, such as its training samples.

        With a temperature T, a weight is multiplied by size^(1/T). The weights still say how much a domain is wanted: this is our
        choice, so that with T = 1 a weight of 2 means twice as many epochs, and with a large T twice as many samples.
        """
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
        """Return how many of the first `blocks` blocks of a set of domains should be those of each member, float [M].

        Every phase adds its blocks times the share of the member there. So a domain that a phase adds is due nothing for the steps
        before it, and what rounding left open at the end of a phase is settled in the next. per_step: blocks of the set in a step.
        """
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
