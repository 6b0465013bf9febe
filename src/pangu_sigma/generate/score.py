"""Scores of a text: the log-probabilities of its tokens.

Shape suffixes: S tokens, R rows of a slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pangu_sigma.generate.request import Request

if TYPE_CHECKING:
    from pangu_sigma.domains import Domain
    from pangu_sigma.generate.engine import Engine


@dataclass(frozen=True)
class Score:
    """Log-probabilities of a text's tokens, in order, without the first, which nothing precedes.

    ids: token ids. tokens: their texts; a part of a character shows as U+FFFD. logprobs: natural logarithm of each token's
    probability, given all tokens before it.
    """

    ids: list[int]
    tokens: list[str]
    logprobs: list[float]

    @property
    def total(self) -> float:
        """Sum of the tokens' log-probabilities, in nats."""
        return float(sum(self.logprobs))


def token_losses(logits_SR: np.ndarray, rows_S: np.ndarray) -> np.ndarray:
    """Return the loss of S tokens in nats, float64 [S]. logits_SR: logits over the rows of a slot. rows_S: row of each token."""
    logits_SR = logits_SR.astype(np.float64)
    max_S1 = logits_SR.max(axis=1, keepdims=True)  # exp of a difference does not overflow
    log_sum_S = np.log(np.exp(logits_SR - max_S1).sum(axis=1)) + max_S1[:, 0]
    return log_sum_S - np.take_along_axis(logits_SR, rows_S[:, None], 1)[:, 0]


def score(engine: Engine, text: str, domain: Domain) -> Score:
    """Score a text with a domain's tokenizer and experts.

    Raises DataError for invalid Unicode, ConfigError for a text without tokens, or with more than model.seq_length tokens.
    """
    tokenizer = engine.decoder.tokenizer
    ids = tokenizer.prompt(text, domain)
    (answer,) = engine.complete([Request(domain, tuple(ids), max_new_tokens=0, prompt_logprobs=0)])
    tokens = answer.prompt[1:]  # the first token has no log-probability
    logprobs = [token.logprob for token in tokens if token.logprob is not None]
    return Score([token.id for token in tokens], [tokenizer.decode([token.id]) for token in tokens], logprobs)
