"""How the next token is chosen from logits. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pangu_sigma.config import ConfigError


@dataclass(frozen=True)
class Sampling:
    """Options of sampling. A new one is a field here with its range, its use in `choose`, and an option in `commands/models.py`.

    temperature: 0 takes the most likely token (greedy); the higher, the more evenly tokens are drawn.
    top_k: draw from this many most likely tokens only; 0 keeps every token.
    top_p: draw from the fewest tokens that have this probability together; 1 keeps every token.
    repetition_penalty: above 1 makes tokens that occurred less likely (CTRL's rule); 1 changes nothing.

    Raises ConfigError for values outside these ranges.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        for name, fits, allowed in (
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0; 1 is none"),
        ):
            if not fits:
                raise ConfigError(f"{name}={getattr(self, name)} is not allowed: {allowed}")

    def choose(self, logits_R: np.ndarray, seen: list[int], rng: np.random.Generator) -> int:
        """Row of the next token. seen: rows that occurred already, for the repetition penalty."""
        logits_R = logits_R.astype(np.float64)
        if seen and self.repetition_penalty != 1.0:
            rows = np.unique(seen)
            scores = logits_R[rows]
            logits_R[rows] = np.where(scores > 0, scores / self.repetition_penalty, scores * self.repetition_penalty)
        if self.temperature == 0:
            return int(logits_R.argmax())
        order = np.argsort(-logits_R, kind="stable")
        scores = logits_R[order] / self.temperature
        probabilities = np.exp(scores - scores[0])
        probabilities /= probabilities.sum()
        kept = len(order) if self.top_k == 0 else min(self.top_k, len(order))
        if self.top_p < 1:  # the smallest set of most likely tokens that reaches top_p
            kept = min(kept, int(np.searchsorted(np.cumsum(probabilities), self.top_p)) + 1)
        probabilities = probabilities[:kept] / probabilities[:kept].sum()
        return int(order[rng.choice(kept, p=probabilities)])
