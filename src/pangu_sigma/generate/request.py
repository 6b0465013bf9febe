"""Request to a model, and its answer while it is generated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pangu_sigma.domains import Domain
from pangu_sigma.generate.sampling import Sampling

if TYPE_CHECKING:
    from pangu_sigma.generate.structure import Structure  # its library is for those who ask for one


@dataclass(frozen=True)
class Request:
    """Request to continue a text. Its answer does not depend on other requests at the same time.

    domain: domain whose experts and slot are used. ids: the prompt, at least one token.
    max_new_tokens: maximum number of new tokens; 0 only scores the prompt. The answer also ends at model.seq_length.
    seed: seed of the random generator of this answer alone.
    stop: strings; the answer's text ends before the first complete one. stop_ids: token ids that end the answer, as <eot> does.
    logprobs: number of alternatives to report with the log-probability of each new token; None to report nothing.
    prompt_logprobs: the same for the tokens of the prompt. scored_from: number of the first of them that is scored; 1 or more,
    because nothing precedes the first token.
    ignore_eot: True to go on after <eot>, with a new document. logit_bias: (token id, value added to its logit) before penalties.
    structure: structure that the answer has, compiled for this domain; None for any text.
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
    structure: Structure | None = None


@dataclass(frozen=True)
class Token:
    """Token of a prompt or an answer, with its probability.

    text: the characters that are certain with this token, "" while a character or a possible stop string is incomplete; the texts
    of all tokens, joined, are the whole text.
    logprob: natural logarithm of its probability in the model's own distribution (temperature 1, before bias and penalties); None
    if it was not requested, or if the token is the first.
    top: ids of the most likely tokens here with their log-probabilities, most likely first.
    """

    id: int
    text: str
    logprob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(eq=False)
class Answer:
    """Answer to a request; only the thread that steps the engine changes it.

    prompt: tokens of the prompt if `prompt_logprobs` requests them, filled before the first new token. They begin with the token
    before number `scored_from`: by default with the first.
    tokens: new tokens; the last one of a finished answer may be the <eot> or the stop id that ended it, whose own text is not in
    the answer. text: the answer so far, without an incomplete character or stop string at its end.
    finish: None while it grows; "stop" after <eot>, a stop string or a stop id, or once its structure is whole; "length" after
    max_new_tokens or at model.seq_length, or if its structure cannot be followed further, which `warning` then says; "cancelled"
    after `Engine.cancel` or an error. error: the error that ended it, such as logits that are not finite. ended_by_id: True if
    <eot> or a stop id ended it. cancelled: True after `Engine.cancel`.
    """

    request: Request
    prompt: list[Token] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    finish: Literal["stop", "length", "cancelled"] | None = None
    error: Exception | None = None
    warning: str = ""
    cancelled: bool = False
    ended_by_id: bool = False

    @property
    def ids(self) -> list[int]:
        """Ids of the new tokens, without the <eot> or stop id that ended them."""
        ids = [token.id for token in self.tokens]
        return ids[:-1] if self.ended_by_id else ids
