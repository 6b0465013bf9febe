"""Schemas of requests, in the form of OpenAI's interface. A request with an unknown parameter is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Field, ValidationError, WrapValidator, model_validator

from pangu_sigma.generate.sampling import Factor, Penalty, TopP
from pangu_sigma.generate.structure import StructureKind
from pangu_sigma.sections import Fraction, Section


class RequestBody(Section):
    """Base class of request bodies and their parts."""

    @model_validator(mode="before")
    @classmethod
    def _without_unknown_nulls(cls, body: Any) -> Any:
        """Drop unknown keys whose value is null: clients send answers back with all their fields."""
        if not isinstance(body, dict):
            return body
        return {key: value for key, value in body.items() if value is not None or key in cls.model_fields}


def _else(message: str) -> WrapValidator:
    """Return a validator that refuses a value with this message. Pydantic alone would have a line for each type of a union."""

    def check(value: Any, validate: Any) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(message) from None

    return WrapValidator(check)


TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
BiasedToken = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
ModelName = Annotated[str, Field(max_length=200, description="An id of /v1/models, which names a domain.")]
SomeText = Annotated[str, Field(min_length=1)]
SomeTexts = Annotated[list[SomeText], Field(min_length=1)]
SomeIds = Annotated[list[TokenId], Field(min_length=1)]
_Prompts = Field(min_length=1, max_length=128)
PromptInput = Annotated[
    str | Annotated[list[str], _Prompts] | SomeIds | Annotated[list[SomeIds], _Prompts],
    _else(
        "must be a text, token ids, or a list of at most 128 texts or lists of token ids; no list may be empty, and a token id is "
        "a whole number from 0 to 2147483647"
    ),
    Field(description="A text, or token ids, or a list of either: an answer for each."),
]
_StopString = Annotated[str, Field(min_length=1, max_length=100)]
StopStrings = Annotated[
    _StopString | Annotated[list[_StopString], Field(max_length=16)],
    _else("must be a Unicode text, or a list of at most 16 Unicode texts, of 1 to 100 characters each"),
    Field(description="The answer ends before the first of these."),
]
NoSuffix = Annotated[
    Literal[""],
    _else("is not supported: these models write after a text, not inside of one; leave it out"),
    Field(description="Not supported."),
]
_NO_TOOLS = _else("these models call no tools; response_format with a json_schema makes the answer their arguments")


class JsonSchema(RequestBody):
    """JSON schema in `response_format`. It is always kept to, whatever `strict` says."""

    name: Annotated[str, Field(max_length=64)]
    json_schema: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(RequestBody):
    """Format of an answer, as in OpenAI's interface."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, description='With "type": "json_schema".')

    @model_validator(mode="after")
    def _schema_of_its_type(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('json_schema goes with type="json_schema", and is needed there; give both, or neither')
        return self


class StructuredOutputs(RequestBody):
    """Structure of an answer, as in vLLM: exactly one of these."""

    json_schema: dict[str, Any] | None = Field(None, alias="json", description="A JSON schema.")
    regex: SomeText | None = Field(None, description="The whole answer matches it.")
    choice: SomeTexts | None = Field(None, description="The answer is one of these.")

    @model_validator(mode="after")
    def _one_of_them(self) -> StructuredOutputs:
        if [self.json_schema, self.regex, self.choice].count(None) != 2:
            raise ValueError("must have exactly one of json, regex and choice")
        return self


class StreamOptions(RequestBody):
    """Options of a streamed response."""

    include_usage: bool | None = Field(None, description="One more chunk before the last line: the numbers of tokens.")


class WithoutEffect(RequestBody):
    """Parameters that clients of OpenAI send and that change no answer. They are accepted, and the response warns of them."""

    user: Annotated[str, Field(max_length=512)] | None = Field(None, description="Whom you answer; not used, not kept.")
    safety_identifier: Annotated[str, Field(max_length=512)] | None = Field(None, description="The newer name of user.")
    store: bool | None = Field(None, description="Nothing is kept here.")
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = Field(None, description="Nothing is kept here.")
    service_tier: str | None = Field(None, description="There is one tier.")
    prompt_cache_key: str | None = Field(None, description="Prompts are not cached.")
    reasoning_effort: str | None = Field(None, description="These models do not reason.")
    parallel_tool_calls: bool | None = Field(None, description="These models call no tools.")


class GenerationRequest(WithoutEffect):
    """Parameters that requests for completions and for chats share. null means the default."""

    model: ModelName | None = None
    n: int | None = Field(None, ge=1, le=16, description="Number of answers to each prompt; 1 if not given.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy; 1 if not given.")
    top_p: TopP | None = Field(None, description="Draw from the fewest tokens with this probability.")
    top_k: int | None = Field(None, ge=-1, lt=1 << 31, description="Draw from this many tokens; 0 or -1: from all.")
    min_p: Fraction | None = Field(None, description="Leave out tokens below this share of the likeliest one.")
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Factor | None = Field(None, description="Above 1: repetitions become less likely.")
    seed: int | None = Field(None, ge=0, lt=1 << 53, description="Answer i to a prompt draws with seed + i.")
    stop: StopStrings | None = None
    stop_token_ids: list[TokenId] | None = Field(
        None, max_length=16, description="The answer ends with the first of these."
    )
    ignore_eos: bool | None = Field(None, description="Go on after the end of a document.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[BiasedToken, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=1024, description="Added to the logits of token ids."
    )
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="after")
    def _combinations(self) -> GenerationRequest:
        """Reject combinations of values that are not supported."""
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed with stream=true")
        if self.structured_outputs is not None and self.response_format is not None:
            raise ValueError("response_format and structured_outputs both describe the answer; give one of them")
        if self.structure is not None and self.ignore_eos:
            parameter, _, _ = self.structure
            raise ValueError(f"{parameter} ends the answer where it is whole; ignore_eos=true goes on; leave one out")
        return self

    @property
    def structure(self) -> tuple[str, StructureKind, Any] | None:
        """(parameter that describes the answer, kind of structure, its schema, expression or texts); None: any text."""
        if self.structured_outputs is not None:
            ((kind, value),) = self.structured_outputs.model_dump(by_alias=True, exclude_none=True).items()
            return f"structured_outputs.{kind}", cast(StructureKind, kind), value
        if self.response_format is None or self.response_format.type == "text":
            return None
        schema = self.response_format.json_schema
        return "response_format", "json", {"type": "object"} if schema is None else schema.json_schema


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: PromptInput
    max_tokens: int | None = Field(None, ge=0, description="New tokens at most; 16 if not given; 0 only with echo.")
    echo: bool | None = Field(None, description="Begin the answer with the prompt.")
    logprobs: int | None = Field(
        None, ge=0, le=20, description="Log-probabilities, with this many alternatives to a token."
    )
    experts: bool | None = Field(None, description="Ours: each token's experts in all segments, in logprobs.experts.")
    best_of: int | None = Field(None, ge=1, description="Not supported beyond n.")
    suffix: NoSuffix | None = None
    add_special_tokens: bool | None = Field(None, description="false: no language tag before the text.")

    @model_validator(mode="after")
    def _own_combinations(self) -> CompletionRequest:
        """Reject combinations of values that are not supported, besides the combinations that every request rejects."""
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens=0 without echo=true asks for nothing; raise it, or set echo")
        if (best_of := self.best_of) not in (None, self.n or 1):
            raise ValueError(f"best_of={best_of} is not supported; leave it out, or set n={best_of} and choose")
        return self


class TextPart(RequestBody):
    """Text part of a chat message; other kinds of parts are refused."""

    type: Literal["text"]
    text: str


class Message(RequestBody):
    """Message of a chat request."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str | Annotated[list[TextPart], Field(min_length=1)],
        _else('must be a text, or a list of parts {"type": "text", "text": …}; images, audio and files are not read'),
    ]

    @property
    def text(self) -> str:
        """Text of the whole message."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=256)
    max_tokens: int | None = Field(None, ge=1, description="New tokens at most; as many as fit if not given.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="Number of alternatives to a token; with logprobs=true."
    )
    tools: Annotated[list[Any], Field(max_length=0, description="Not supported."), _NO_TOOLS] | None = None
    tool_choice: Annotated[Literal["none"], Field(description="Not supported."), _NO_TOOLS] | None = None

    @model_validator(mode="after")
    def _own_combinations(self) -> ChatRequest:
        """Reject combinations of values that are not supported, besides the combinations that every request rejects."""
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is only allowed with logprobs=true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens mean the same and differ; give one of them")
        if self.messages[-1].role != "user":
            raise ValueError("messages: the last one must have the role user; the answer to it is what comes next")
        if any(message.role in ("system", "developer") for message in self.messages[1:]):
            raise ValueError("messages: only the first one can have the role system or developer")
        return self


class TokenizeRequest(RequestBody):
    """Body of POST /tokenize, as in vLLM."""

    model: ModelName | None = None
    prompt: str
    add_special_tokens: bool | None = Field(None, description="false: no language tag before the text.")
    return_token_strs: bool | None = None


class DetokenizeRequest(RequestBody):
    """Body of POST /detokenize, as in vLLM."""

    model: ModelName | None = None
    tokens: list[TokenId]
