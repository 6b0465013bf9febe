"""Schemas of response bodies, in the form of OpenAI's interface. "Ours" marks fields that OpenAI does not have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pangu_sigma.sections import Segment

FinishReason = Literal["stop", "length"]


class ResponseBody(BaseModel):
    """Base class of response bodies and their parts."""

    model_config = ConfigDict(extra="forbid")

    def json_text(self) -> str:
        """Return the body as JSON. It has the fields that were set, null ones too, and no field that was left at its default."""
        return self.model_dump_json(exclude_unset=True)


class Usage(ResponseBody):
    """Token counts of a response. A prompt counts once, however many answers it gets."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ResponseBase(ResponseBody):
    """Fields that every response begins with. warnings (not OpenAI's): text that was left out or replaced, and the remedy."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage | None = None
    warnings: list[str] = []


def warned(warnings: Iterable[str]) -> dict[str, Any]:
    """Return the field `warnings` of a response, which has it only if there are some."""
    return {"warnings": different} if (different := list(dict.fromkeys(warnings))) else {}


class CompletionLogprobs(ResponseBody):
    """Log-probabilities of a completion's tokens, and with `echo` of the prompt's. The first token of the text has none.

    text_offset: number of characters before each token. tokens: text of each token; `bytes:\\xe4` for a part of a character.
    top_logprobs: alternatives by their text, most likely first, and the token itself; `token_id:123` for one
    whose text is another's. experts (not OpenAI's): the experts of each token, RRE layer by RRE layer and in it segment by segment,
    in the order of `ServedModel.segments`. Experts of an own segment are numbered over all domains: no two have one with the same
    number. Those of a common one are shared by all.
    """

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]
    experts: list[list[int]] | None = None


class CompletionChoice(ResponseBody):
    """Text of one completion, or of one chunk of its stream. finish_reason: null until the last chunk."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(ResponseBase):
    """Response of POST /v1/completions, and each chunk of its stream."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class TopLogprob(ResponseBody):
    """Alternative to a token, with its log-probability. bytes: text of the token in UTF-8."""

    token: str
    bytes: list[int] | None
    logprob: float


class TokenLogprob(TopLogprob):
    """Log-probability of a token of an answer. top_logprobs: alternatives, most likely first; empty if not requested."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(ResponseBody):
    """Log-probabilities of the tokens of a chat's answer."""

    content: list[TokenLogprob]
    refusal: None


class AssistantMessage(ResponseBody):
    """Message that the model writes."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(ResponseBody):
    """One answer to a chat."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(ResponseBase):
    """Response of POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class Delta(ResponseBody):
    """New text of an answer, in a chunk of a chat's stream."""

    role: Literal["assistant"] = "assistant"
    content: str = ""


class ChatChunkChoice(ResponseBody):
    """Part of an answer in one chunk of a chat's stream. finish_reason: null until the last chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(ResponseBase):
    """Chunk of the stream of POST /v1/chat/completions."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class ServedModel(ResponseBody):
    """Model in GET /v1/models, one per domain. max_model_len (as in vLLM): tokens of prompt and answer.
    Not OpenAI's: domain, and segments, the kind of each segment of an RRE layer; empty if there are no such layers."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    domain: str
    segments: list[Segment]


class ModelList(ResponseBody):
    """Response of GET /v1/models."""

    object: Literal["list"]
    data: list[ServedModel]


class Tokenized(ResponseBody):
    """Response of POST /tokenize, as in vLLM."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(ResponseBody):
    """Response of POST /detokenize, as in vLLM."""

    prompt: str


class TokenizerInfo(ResponseBody):
    """Response of GET /tokenizer_info, as in vLLM. chat_template: Jinja."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    bos_token: str | None
    eos_token: str
    pad_token: str
    unk_token: str
    chat_template: str
