"""How likely a model finds a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pangu_sigma.generate.sampling import check_text

if TYPE_CHECKING:
    from pangu_sigma.domains import Domain
    from pangu_sigma.generate.predictor import Predictor


@dataclass(frozen=True)
class Score:
    """The tokens of a text that have one before them, in order.

    ids: their ids. tokens: their text; one that is part of a character shows as U+FFFD. logprobs: natural logarithm of the
    probability of each one, given all tokens before it.
    """

    ids: list[int]
    tokens: list[str]
    logprobs: list[float]

    @property
    def total(self) -> float:
        """Log-probability of all of them together, in nats."""
        return float(sum(self.logprobs))


def score(predictor: Predictor, text: str, domain: Domain) -> Score:
    """Score a text as `domain` reads it.

    Raises ConfigError for what is no Unicode text, for a text without tokens, and for one of more than model.seq_length tokens.
    """
    tokenizer = predictor.tokenizer
    check_text(text, "the text")
    ids = tokenizer.prompt(text, domain)
    logits_SR = predictor.logits_along(ids, domain).astype(np.float64)[:-1]
    top_S = logits_SR.max(axis=-1)
    log_sum_S = top_S + np.log(np.exp(logits_SR - top_S[:, None]).sum(axis=-1))
    rows_S = tokenizer.row_of[domain.slot, ids[1:]]
    logprobs_S = logits_SR[np.arange(len(rows_S)), rows_S] - log_sum_S
    return Score(ids[1:], [tokenizer.decode([token]) for token in ids[1:]], logprobs_S.tolist())
