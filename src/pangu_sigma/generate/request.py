"""What is asked of a model, and the answer while it grows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pangu_sigma.config import ConfigError
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.domains import Domain
from pangu_sigma.generate.sampling import Sampling, check_count, check_request, check_text

MOST_BIAS = 100.0
"""The most that `logit_bias` may add or take: as in the OpenAI interface."""


@dataclass(frozen=True)
class Request:
    """A text to go on with. Its answer does not depend on what else is asked at the same time.

    domain: which experts and which slot read and answer. ids: the prompt, one token or more.
    max_new_tokens: the most tokens of the answer; 0 only scores the prompt. The answer also ends at model.seq_length.
    seed: of this answer's own random generator.
    stop: strings; the answer's text ends before the one that is complete first. stop_ids: token ids that end it, as <eot> does.
    logprobs: number of alternatives to tell with the log-probability of each new token; None for neither.
    prompt_logprobs: the same for the tokens of the prompt. scored_from: number of the first of them that has one; 1 or more,
    because nothing stands before the first token.
    ignore_eot: True to go on after <eot>, with a new document. logit_bias: (token id, what is added to its logit) before penalties.
    """

    domain: Domain
    ids: tuple[int, ...]
    max_new_tokens: int = 16
    sampling: Sampling = Sampling()  # noqa: RUF009 (frozen)
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    ignore_eot: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    scored_from: int = 1


@dataclass(frozen=True)
class Token:
    """A token of a prompt or an answer.

    text: the characters that are sure once this token is there, "" while a character or a possible stop string is unfinished;
    those of all tokens, joined, are the text.
    logprob: natural logarithm of its probability, of the model's own distribution (temperature 1, before bias and penalties); None
    if it was not asked for, or nothing stands before the token.
    top: ids of the most likely tokens there with their log-probabilities, most likely first.
    experts: its expert in each RRE layer, numbered within the group of its domain.
    """

    id: int
    text: str
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    experts: tuple[int, ...]


@dataclass(eq=False)
class Answer:
    """The answer to a request; only the thread that steps the engine changes it.

    prompt: tokens of the prompt, filled before the first new one if `prompt_logprobs` asks for them: from the one before
    `scored_from` on, which is the first of all by default.
    tokens: new tokens; the last one of a finished answer may be the <eot> or the stop id that ended it, whose own text is not in
    the answer. text: the answer so far; what may become a stop string or is half a character is not in it yet.
    finish: None while it grows; "stop" after <eot>, a stop string or a stop id, "length" after max_new_tokens or at
    model.seq_length, "cancelled". ended_by_id: True if <eot> or a stop id ended it. cancelled: True once somebody wants no more.
    """

    request: Request
    prompt: list[Token] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    finish: Literal["stop", "length", "cancelled"] | None = None
    cancelled: bool = False
    ended_by_id: bool = False

    @property
    def ids(self) -> list[int]:
        """Ids of the new tokens, without the <eot> or stop id that ended them."""
        ids = [token.id for token in self.tokens]
        return ids[:-1] if self.ended_by_id else ids


def check_fits(request: Request, tokenizer: Tokenizer, seq_length: int) -> None:
    """Raise ConfigError for a request that this model cannot answer."""
    check_request(request.max_new_tokens, request.seed)
    for name in ("logprobs", "prompt_logprobs"):
        if (most := getattr(request, name)) is not None:
            check_count(name, most)
    if not request.scored_from >= 1:
        raise ConfigError(
            f"scored_from={request.scored_from} is not allowed: nothing stands before token 0; use 1 or more"
        )
    if not request.ids:
        raise ConfigError("a prompt has no tokens; give at least one character, or a domain with a language tag")
    if len(request.ids) > seq_length:
        raise ConfigError(
            f"a prompt of domain {request.domain.name} has {len(request.ids)} tokens, more than model.seq_length={seq_length}; "
            "shorten it"
        )
    tokenizer.rows(request.ids, request.domain)
    for text in request.stop:
        check_text(text, "a stop string")
        if not text:
            raise ConfigError("a stop string is empty; leave it away")
    tokenizer.rows(request.stop_ids, request.domain)
    tokenizer.rows([token for token, _ in request.logit_bias], request.domain)
    for token, bias in request.logit_bias:
        if not abs(bias) <= MOST_BIAS:
            raise ConfigError(f"logit_bias of token id {token} is {bias}; it may be {-MOST_BIAS:g} to {MOST_BIAS:g}")
