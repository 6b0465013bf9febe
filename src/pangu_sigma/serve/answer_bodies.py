"""The bodies of answers, in the form of OpenAI's interface. Fields that OpenAI does not have say so."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Finish = Literal["stop", "length"]


class AnswerBody(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(extra="forbid")

    def json_text(self) -> str:
        """The part as JSON: every field that was given, null too."""
        return self.model_dump_json(exclude_unset=True)


class Usage(AnswerBody):
    """Numbers of tokens. A prompt counts once, however many answers it gets."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Said(AnswerBody):
    """What every answer begins with. warnings: ours: what was left out or replaced, and how to change that."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage | None = None
    warnings: list[str] = []


class CompletionLogprobs(AnswerBody):
    """Tokens of a text, those of the prompt too with `echo`. The first token of all has no log-probability.

    text_offset: number of characters before each token. tokens: its text; `bytes:\\xe4` for a part of a character.
    top_logprobs: alternatives by their text, most likely first, and the token itself. experts: ours: the expert of each token in
    each RRE layer, numbered within the domain's group.
    """

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]
    experts: list[list[int]] | None = None


class CompletionChoice(AnswerBody):
    """An answer, or a part of it. finish_reason: null while it goes on."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish | None


class Completion(Said):
    """The answer of POST /v1/completions, and each chunk of its stream."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class TopLogprob(AnswerBody):
    """A token that could have been. bytes: its UTF-8."""

    token: str
    bytes: list[int] | None
    logprob: float


class TokenLogprob(TopLogprob):
    """A token of an answer. top_logprobs: alternatives, most likely first; none if none were asked for."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(AnswerBody):
    """Tokens of an answer."""

    content: list[TokenLogprob]
    refusal: None


class AssistantMessage(AnswerBody):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(AnswerBody):
    """An answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(Said):
    """The answer of POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class Delta(AnswerBody):
    """What is new in a chunk."""

    role: Literal["assistant"] = "assistant"
    content: str = ""


class ChatChunkChoice(AnswerBody):
    """A part of an answer. finish_reason: null while it goes on."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatChunk(Said):
    """A chunk of the stream of POST /v1/chat/completions."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class ServedModel(AnswerBody):
    """A domain of the model. max_model_len: tokens of a prompt and its answer together, vLLM's word. domain: ours."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    domain: str


class ModelList(AnswerBody):
    """The answer of GET /v1/models."""

    object: Literal["list"]
    data: list[ServedModel]


class Tokenized(AnswerBody):
    """The answer of POST /tokenize, vLLM's."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(AnswerBody):
    """The answer of POST /detokenize, vLLM's."""

    prompt: str


class TokenizerInfo(AnswerBody):
    """The answer of GET /tokenizer_info, vLLM's. chat_template: Jinja."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    bos_token: str | None
    eos_token: str
    pad_token: str
    unk_token: str
    chat_template: str


class SignOfLife(AnswerBody):
    """The answer of GET /health."""

    status: str = Field(description="ok")


class Version(AnswerBody):
    """The answer of GET /version."""

    version: str
