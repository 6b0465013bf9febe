"""How the next token is chosen from logits. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from pangu_sigma.config import ConfigError

_LEAST, _MOST = 1e-9, 1e9
"""Range of what logits are divided by or multiplied with: beyond it float64 may overflow, and every choice is made long before."""


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
        t, penalty = self.temperature, self.repetition_penalty
        for name, fits, allowed in (
            (
                "temperature",
                _is_number(t) and (t == 0 or _LEAST <= t <= _MOST),
                f"0 (greedy), or {_LEAST:g} to {_MOST:g}",
            ),
            ("top_k", _is_whole(self.top_k) and self.top_k >= 0, "a whole number, 0 (all tokens) or more"),
            ("top_p", _is_number(self.top_p) and 0 < self.top_p <= 1, "above 0, at most 1"),
            (
                "repetition_penalty",
                _is_number(penalty) and _LEAST <= penalty <= _MOST,
                f"{_LEAST:g} to {_MOST:g}; 1 is none",
            ),
        ):
            if not fits:
                raise ConfigError(f"{name}={getattr(self, name)!r} is not allowed: {allowed}")

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


def check_request(max_new_tokens: int, seed: int) -> None:
    """Raise ConfigError for a number of tokens or a seed that cannot be."""
    for name, value in (("max_new_tokens", max_new_tokens), ("seed", seed)):
        if not (_is_whole(value) and value >= 0):
            raise ConfigError(f"{name}={value!r} is not allowed: a whole number, 0 or more")


def check_text(text: str, what: str) -> None:
    """Raise ConfigError for a text that no UTF-8 can hold, such as what a shell makes of bytes that are none. what: its name."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{what} is not Unicode text: character {error.start} is {text[error.start]!r}, half a pair or a byte that is no "
            "UTF-8; give it in UTF-8"
        ) from None


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
