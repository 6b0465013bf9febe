"""Ways in which replicated experts may start unequal, all off by default: then step 0 answers as the parent.

noise: each value of an expert's matrices is multiplied by 1 + noise · N(0, 1), another draw for each expert (our choice; equal
experts
    that see other tokens part anyway, and noise makes them part sooner).
reinit_ratio: that share of the inner units of each expert, another choice for each expert, is drawn anew: rows of w1 and w2 from
    a normal distribution with the mean and deviation of the parent's matrix, biases zero. Drop-Upcycling (Nakamura et al. 2025,
    arXiv 2502.19261) does this with half of the units of experts behind a gate.

Shape suffixes: F ffn, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pangu_sigma.config import ConfigError

MATRICES = ("w1", "w2")


@dataclass(frozen=True)
class Variation:
    """How experts differ from the parent's FFN; see the module's text. Raises ConfigError for numbers that make no sense."""

    noise: float = 0.0
    reinit_ratio: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value, most in (("--noise", self.noise, 1.0), ("--reinit-ratio", self.reinit_ratio, 1.0)):
            if not 0.0 <= value <= most:
                raise ConfigError(f"{option} is {value}; it must be from 0 to {most:g}")

    @property
    def none(self) -> bool:
        """True if experts are exact copies."""
        return self.noise == 0.0 and self.reinit_ratio == 0.0

    def vary(self, value: np.ndarray, name: str, layer: int, expert: int) -> np.ndarray:
        """The tensor `name` of an expert. value: the parent's, [F, H], [F] or [H]. layer: the RRE layer."""
        if self.none or name == "b2":
            return value
        varied = np.array(value, np.float32)
        if self.reinit_ratio:
            units = np.random.default_rng([self.seed, layer, expert]).permutation(len(value))
            units = units[: round(self.reinit_ratio * len(value))]
            draw = self._generator(layer, expert, name)
            if name in MATRICES:
                drawn = draw.standard_normal((len(units), value.shape[1]), np.float32)
                varied[units] = value.mean(dtype=np.float64) + value.std(dtype=np.float64) * drawn
            else:
                varied[units] = 0.0
        if self.noise and name in MATRICES:
            draw = self._generator(layer, expert, name, "noise")
            for row in varied:
                row *= 1 + self.noise * draw.standard_normal(row.shape, np.float32)
        return varied

    def _generator(self, layer: int, expert: int, name: str, what: str = "fresh") -> np.random.Generator:
        """The generator of one draw. what: a part of its seed, which decides all values."""
        return np.random.default_rng([self.seed, layer, expert, *f"{what} {name}".encode()])
