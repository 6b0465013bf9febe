"""Variation of replicated experts, off by default, so that step 0 answers as the parent.

noise: each value of an expert's matrices is multiplied by 1 + noise · N(0, 1), with another draw for each expert (our choice; equal
    experts that see different tokens diverge anyway, and noise makes them diverge sooner).
reinit_ratio: this fraction of the inner units of each expert, chosen anew for each expert, is drawn: rows of w1 and w2 from a
    normal distribution with the mean and deviation of the parent's matrix, biases zero. Drop-Upcycling (Nakamura et al. 2025,
    arXiv 2502.19261) does this with half of the units of experts behind a gate.

Shape suffixes: F ffn, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pangu_sigma.config import ConfigError
from pangu_sigma.errors import argument

MATRICES = ("w1", "w2")


@dataclass(frozen=True)
class Variation:
    """Random difference between experts that are copies of one FFN. Raises ConfigError for numbers outside 0 … 1.

    noise: standard deviation of the random factor 1 + noise · N(0, 1) of each weight. reinit_ratio: fraction of an expert's inner
    units that are drawn anew.
    """

    noise: float = 0.0
    reinit_ratio: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value in (("--noise", self.noise), ("--reinit-ratio", self.reinit_ratio)):
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{argument(option)} is {value}; it must be from 0 to 1")

    @property
    def none(self) -> bool:
        """True if experts are exact copies."""
        return self.noise == 0.0 and self.reinit_ratio == 0.0

    def vary(self, value: np.ndarray, name: str, segment: int, expert: int) -> np.ndarray:
        """Return the varied tensor `name` of an expert. value: the FFN's, [F, H], [F] or [H]. segment: number among those of all
        RRE layers."""
        if self.none or name == "b2":
            return value
        varied = np.array(value, np.float32)
        if self.reinit_ratio:
            units = np.random.default_rng([self.seed, segment, expert]).permutation(len(value))
            units = units[: round(self.reinit_ratio * len(value))]
            draw = self._generator(segment, expert, name)
            if name in MATRICES:
                drawn = draw.standard_normal((len(units), value.shape[1]), np.float32)
                varied[units] = value.mean(dtype=np.float64) + value.std(dtype=np.float64) * drawn
            else:
                varied[units] = 0.0
        if self.noise and name in MATRICES:
            draw = self._generator(segment, expert, name, "noise")
            for row in varied:
                row *= 1 + self.noise * draw.standard_normal(row.shape, np.float32)
        return varied

    def _generator(self, segment: int, expert: int, name: str, what: str = "fresh") -> np.random.Generator:
        """Return the generator of one draw. what: part of its seed."""
        return np.random.default_rng([self.seed, segment, expert, *f"{what} {name}".encode()])
