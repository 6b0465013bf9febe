"""Scores of a text: the log-probabilities of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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


def score(engine: Engine, text: str, domain: Domain) -> Score:
    """Score a text with a domain's tokenizer and experts.

    Raises ConfigError for invalid Unicode, for a text without tokens, or with more than model.seq_length tokens.
    """
    from pangu_sigma.generate.request import Request
    from pangu_sigma.generate.text import prompt_ids

    tokenizer = engine.decoder.tokenizer
    ids = prompt_ids(tokenizer, text, domain)
    (answer,) = engine.complete([Request(domain, tuple(ids), max_new_tokens=0, prompt_logprobs=0)])
    scored = answer.prompt[1:]
    logprobs = [token.logprob for token in scored if token.logprob is not None]
    return Score([token.id for token in scored], [tokenizer.decode([token.id]) for token in scored], logprobs)
