"""Sampling of the next token from logits, in pure NumPy.

Shape suffixes: R rows of a slot, C rows that may be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from pangu_sigma.sections import Fraction, Section

LEAST_FACTOR, MOST_FACTOR = 1e-9, 1e9
"""Range of divisors and factors of logits: beyond it float64 may overflow, and the choice no longer changes."""
_Greedy = AfterValidator(lambda temperature: temperature if temperature >= LEAST_FACTOR else 0.0)
Temperature = Annotated[float, Field(ge=0, le=MOST_FACTOR), _Greedy]
"""Temperature of a draw; below LEAST_FACTOR it is 0, which is greedy."""
TopP = Annotated[float, Field(gt=0, le=1)]
Factor = Annotated[float, Field(ge=LEAST_FACTOR, le=MOST_FACTOR)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
"""Penalty that is subtracted from a logit, in the range of OpenAI's interface."""


class Sampling(Section):
    """Sampling options of generated text. A new option is a field, used in `choose`, and a parameter of `loaded.generate`.

    temperature: 0 takes the most likely token (greedy); higher values draw more evenly.
    top_k: draw from this many most likely tokens only; 0 keeps every token.
    top_p: draw from the fewest tokens with this total probability; 1 keeps every token.
    min_p: drop tokens below this fraction of the most likely token's probability; 0 keeps every token.
    repetition_penalty: above 1 makes tokens of prompt and answer less likely (CTRL's rule); 1 changes nothing.
    presence_penalty: subtracted from the logit of every token that occurs in the answer; 0 changes nothing.
    frequency_penalty: the same, once for each occurrence.

    Probabilities are those after penalties and temperature.
    """

    temperature: Temperature = 0.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: TopP = 1.0
    min_p: Fraction = 0.0
    repetition_penalty: Factor = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0

    def choose(
        self, logits_R: np.ndarray, prompt: Sequence[int], answer: Sequence[int], rng: np.random.Generator
    ) -> int:
        """Choose the next token and return its row. prompt, answer: rows of the tokens before it, for the penalties."""
        if self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty:
            logits_R = self._penalised(logits_R.astype(np.float64), prompt, answer)
        if not self.temperature:
            return int(logits_R.argmax())
        logits_R = logits_R.astype(np.float64)
        chances_R = np.exp((logits_R - logits_R.max()) / self.temperature)  # probabilities, up to a factor
        rows_C = self._candidates(logits_R, chances_R)
        sums_C = np.cumsum(chances_R[rows_C])
        drawn_number = int(np.searchsorted(sums_C, rng.random() * sums_C[-1], side="right"))
        return int(rows_C[min(drawn_number, len(rows_C) - 1)])  # rounding may give the number after the last

    def _penalised(self, logits_R: np.ndarray, prompt: Sequence[int], answer: Sequence[int]) -> np.ndarray:
        """Apply the penalties to logits in place, and return them. prompt, answer: rows of the tokens so far."""
        if self.repetition_penalty != 1:
            rows = np.unique([*prompt, *answer]).astype(np.int64)
            scores = logits_R[rows]
            logits_R[rows] = np.where(scores > 0, scores / self.repetition_penalty, scores * self.repetition_penalty)
        if (self.presence_penalty or self.frequency_penalty) and answer:
            rows, counts = np.unique(answer, return_counts=True)
            logits_R[rows] -= self.presence_penalty + self.frequency_penalty * counts
        return logits_R

    def _candidates(self, logits_R: np.ndarray, chances_R: np.ndarray) -> np.ndarray:
        """Return the rows that may be drawn, [C], sorted by probability if top_k or top_p is used.

        chances_R: probabilities divided by the largest one.
        """
        threshold = self.min_p
        if self.top_p < 1:  # fewer to sort: all rows below this have less than 1 - top_p together
            threshold = max(threshold, (1 - self.top_p) * chances_R.sum() / len(chances_R))
        if 0 < self.top_k < len(chances_R):
            threshold = max(threshold, np.partition(chances_R, -self.top_k)[-self.top_k])
        rows_C = np.flatnonzero(chances_R >= threshold)  # with ties, more than top_k
        if self.top_k or self.top_p < 1:
            rows_C = rows_C[np.argsort(-logits_R[rows_C], kind="stable")][: self.top_k or None]
        if self.top_p < 1:  # the smallest set of most likely tokens that reaches top_p
            sums_C = np.cumsum(chances_R[rows_C])
            rows_C = rows_C[: int(np.searchsorted(sums_C, self.top_p * chances_R.sum())) + 1]
        return rows_C


def log_probability(logits_R: np.ndarray, row: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """Return the natural log-probability of a row, and the `top` most likely rows with their log-probabilities, likeliest first.

    Computed in float64; rows that hold no token have the logit -inf, and are never among the most likely.
    """
    logits_R = logits_R.astype(np.float64)
    largest = logits_R.max()
    logprobs_R = logits_R - (largest + np.log(np.exp(logits_R - largest).sum()))
    top = min(top, np.count_nonzero(np.isfinite(logits_R))) if top else 0  # counted only if needed
    if not top:
        return float(logprobs_R[row]), []
    rows = np.flatnonzero(logits_R >= np.partition(logits_R, -top)[-top])  # with ties, more than `top`
    rows = rows[np.argsort(-logits_R[rows], kind="stable")][:top]
    return float(logprobs_R[row]), list(zip(rows.tolist(), logprobs_R[rows].tolist(), strict=True))
