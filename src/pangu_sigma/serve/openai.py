"""Routes /v1/completions and /v1/chat/completions: from the body of a request to the engine, and from tokens to the response.

The responses have the form of the types in OpenAI's own package, against which the tests check them. "Ours" marks other fields.
"""

from __future__ import annotations

import difflib
import json
import secrets
import time
import uuid
from asyncio import create_task
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import chain
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.sse import format_sse_event

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import Domain
from pangu_sigma.generate.chat_template import Role
from pangu_sigma.generate.request import Request
from pangu_sigma.generate.sampling import Sampling
from pangu_sigma.generate.structure import Structure
from pangu_sigma.generate.text import BLANK_AT_THE_END, ends_in_blank
from pangu_sigma.serve.engine_thread import Answers, News
from pangu_sigma.serve.logprobs import CompletionTokens, chat_logprobs
from pangu_sigma.serve.prompts import TOO_LONG
from pangu_sigma.serve.refusals import REFUSALS, ApiError
from pangu_sigma.serve.schemas import ChatRequest, CompletionRequest, GenerationRequest, WithoutEffect
from pangu_sigma.serve.served import PREFIX, Served

DEFAULT_MAX_TOKENS = 16
"""Default of max_tokens of completions, as in OpenAI's interface."""
_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second one is for nginx


router = APIRouter(responses=REFUSALS | {200: {"content": {"application/json": {}, "text/event-stream": {}}}})


async def _answers(request: HttpRequest) -> AsyncIterator[Answers]:
    """Yield the `Answers` of a request to its handler. They are broken off when the client disconnects, and closed at the end."""
    answers = Answers(request.app.state.served.thread)

    async def break_off_at_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        answers.break_off()

    disconnect_task = create_task(break_off_at_disconnect())
    try:
        yield answers
    finally:
        disconnect_task.cancel()
        answers.close()


RequestAnswers = Annotated[Answers, Depends(_answers)]


@router.post("/v1/completions")
async def completions(request: HttpRequest, answers: RequestAnswers, body: CompletionRequest) -> Response:
    """Continue prompts."""
    served, domain = domain_of(request, body.model)
    logprobs = 0 if body.experts and body.logprobs is None else body.logprobs  # the response has experts beside them
    prompts, warnings = await _prompts(served, body, domain)
    new_tokens = room_for(served, prompts, body.max_tokens, DEFAULT_MAX_TOKENS)
    structure = await _structure(served, body, domain)
    options = {"logprobs": logprobs, "prompt_logprobs": logprobs if body.echo else None, "structure": structure}
    requests = make_requests(served, body, domain, prompts, new_tokens, options)
    return await _Completions(served, answers, body, requests, warnings).respond()


@router.post("/v1/chat/completions")
async def chat_completions(request: HttpRequest, answers: RequestAnswers, body: ChatRequest) -> Response:
    """Answer a chat."""
    served, domain = domain_of(request, body.model)
    template = served.templates[domain.name]
    max_tokens = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    messages: list[tuple[Role, str]] = [
        ("system" if message.role == "developer" else message.role, message.text) for message in body.messages
    ]
    make_prompt = served.prompts.chat_prompt
    ids, warnings = await served.prompts.in_thread(make_prompt, messages, domain, template, max_tokens)
    new_tokens = room_for(served, [ids], max_tokens, served.length)
    structure = await _structure(served, body, domain)
    stop = template.stop if structure is None else ()  # a structured answer ends once it is whole
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    options = {"logprobs": logprobs, "structure": structure}
    requests = make_requests(served, body, domain, [ids], new_tokens, options, stop)
    return await _ChatCompletions(served, answers, body, requests, warnings).respond()


def domain_of(request: HttpRequest, name: str | None) -> tuple[Served, Domain]:
    """Return the served model, and the domain that answers a request: the domain with the model's name in the body (`name`) or in
    the path, or without a name the only domain.

    Raises ApiError for an unknown name, for two different names, and without a name if there are several domains.
    """
    served, path_name = request.app.state.served, request.path_params.get("of_path")
    domains, first_name, model_name = served.domains, next(iter(served.domains)), name or path_name
    if None not in (name, path_name) and name != path_name:
        raise ApiError.invalid("model", "the body and the path say different ones; say one")
    if model_name is None and len(domains) > 1:
        reason = f"name one of {', '.join(domains)}, here or in front of the path: /{first_name}/…"
        raise ApiError.invalid("model", f"domains read text differently; {reason}", "missing_required_parameter")
    if model_name is not None and model_name not in domains:
        (nearest,) = difflib.get_close_matches(model_name[:100], domains, n=1, cutoff=0.0)
        reason = f"model: there is no {model_name[:100]!r} here; the nearest is {nearest}, and /v1/models lists all"
        raise ApiError(404, reason, "model", "model_not_found")
    return served, domains[model_name or first_name]


async def _prompts(served: Served, body: CompletionRequest, domain: Domain) -> tuple[list[list[int]], list[str]]:
    """Tokenize the prompts of a request. Return (token ids of each prompt, warnings for the client)."""
    is_single = isinstance(body.prompt, str) or isinstance(body.prompt[0], int)
    inputs: list[Any] = [body.prompt] if is_single else [*body.prompt]
    has_language_tag = body.add_special_tokens is not False
    prompts, warnings = [], []
    for prompt in inputs:
        ids = prompt
        if isinstance(prompt, str):
            ids = await served.prompts.in_thread(served.prompts.text_prompt, prompt, domain, has_language_tag)
            if body.max_tokens != 0 and ends_in_blank(prompt, domain):
                warnings.append(BLANK_AT_THE_END)
            if body.echo and served.tokenizer.decode(ids) != prompt:
                warnings.append("the prompt is shown as the model reads it, which is not quite as it was sent")
        prompts.append(ids)
    return prompts, warnings


def room_for(served: Served, prompts: Sequence[list[int]], max_tokens: int | None, default: int) -> list[int]:
    """Return the most new tokens for each prompt: `max_tokens`, or if it is None `default`, cut to the room that the prompt leaves.

    Raises ApiError if a prompt, or prompt and max_tokens together, exceed model.seq_length.
    """
    rooms = [served.length - len(ids) for ids in prompts]
    for ids, room in zip(prompts, rooms, strict=True):
        if room < (max_tokens or 0):
            limit_text, fix = (f" and max_tokens is {max_tokens}", " or lower max_tokens") if max_tokens else ("", "")
            reason = f"{len(ids)} tokens{limit_text}; together they may be {served.length}; shorten the prompt{fix}"
            raise ApiError.invalid("prompt" if room < 1 else "max_tokens", f"the prompt has {reason}", TOO_LONG)
    return [min(default, room) if max_tokens is None else max_tokens for room in rooms]


async def _structure(served: Served, body: GenerationRequest, domain: Domain) -> Structure | None:
    """Return the structure that a request requires of its answers; None for any text. Raises ApiError for an unsupported one."""
    if body.structure is None:
        return None
    parameter, kind, value = body.structure
    try:
        return await served.prompts.in_thread(served.structures.compile, kind, value, domain)
    except ConfigError as error:
        raise ApiError.invalid(parameter, str(error)) from error


def make_requests(
    served: Served,
    body: GenerationRequest,
    domain: Domain,
    prompts: Sequence[list[int]],
    new_tokens: Sequence[int],
    options: dict[str, Any],
    stop: tuple[str, ...] = (),
) -> list[Request]:
    """Make the engine's requests, body.n for each prompt. Raises ApiError for parameters beyond a limit.

    new_tokens: maximum number of new tokens for each prompt. options: more fields of `Request`. stop: stop strings besides the
    client's. Answer i to a prompt has the seed body.seed + i, also over equal prompts.
    """
    n, client_stop = body.n or 1, (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    bias = tuple((int(token), float(value)) for token, value in (body.logit_bias or {}).items())
    if len(prompts) * n > served.limits.waiting:
        reason = f"{len(prompts)} prompts with {n} answers each are more than {served.limits.waiting}, the texts that may wait here"
        raise ApiError.invalid("n", f"{reason}; send fewer, or start the server with --set waiting=N")
    for parameter, ids in (("stop_token_ids", body.stop_token_ids or []), ("logit_bias", [token for token, _ in bias])):
        try:
            served.tokenizer.rows(ids, domain)
        except ConfigError as error:
            raise ApiError.invalid(parameter, str(error)) from error
    sampling = {"temperature": 1.0} | body.model_dump(include={*Sampling.model_fields}, exclude_none=True)
    options = options | {
        "sampling": Sampling(**sampling | {"top_k": max(body.top_k or 0, 0)}),  # -1 stands for all tokens, as 0
        "stop": client_stop + stop,
        "stop_ids": tuple(body.stop_token_ids or ()),
        "ignore_eot": bool(body.ignore_eos),
        "logit_bias": bias,
    }
    first_seed = secrets.randbits(53) if body.seed is None else body.seed
    requests, answer_counts = list[Request](), Counter[tuple[int, ...]]()
    for prompt, max_new_tokens in zip(map(tuple, prompts), new_tokens, strict=True):
        for _ in range(n):
            requests.append(Request(domain, prompt, max_new_tokens, seed=first_seed + answer_counts[prompt], **options))
            answer_counts[prompt] += 1
    return requests


class _Responses:
    """Response to one request, as a whole or as a stream of chunks."""

    id_prefix: str
    objects: tuple[str, str]  # values of the field `object` of the whole response and of a chunk

    def __init__(self, served: Served, answers: Answers, body: Any, requests: list[Request], warnings: Iterable[str]):
        """warnings: warnings about the prompts."""
        self.served, self.answers, self.body, self.requests = served, answers, body, requests
        self.domain = requests[0].domain
        self._head = {"id": f"{self.id_prefix}-{uuid.uuid4().hex}", "created": int(time.time())}
        self._head |= {"model": PREFIX + self.domain.name, "system_fingerprint": served.fingerprint}
        ignored_names = ", ".join(name for name in WithoutEffect.model_fields if getattr(body, name) is not None)
        self._warnings = [f"{ignored_names}: without effect on this server" if ignored_names else "", *warnings]

    async def respond(self) -> Response:
        """Return the response. A stream begins with the first token, so that an error before has an HTTP status of its own."""
        if self.body.stream:
            news = self.answers.news(self.requests)
            events = self._events(await anext(news), news)
            return StreamingResponse(events, media_type="text/event-stream", headers=_STREAM_HEADERS)
        all_news = await self.answers.wait(self.requests)
        warnings = chain(self._warnings, [news.answer.warning for news in all_news])
        choices = [self.choice(news) for news in all_news]
        return JSONResponse(self._body(self.objects[0], choices, warnings, usage=self._usage()))

    def choice(self, news: News) -> dict[str, Any]:
        """Return a finished answer in the form of the whole response."""
        raise NotImplementedError

    def parts(self, news: News) -> list[dict[str, Any]]:
        """Return new tokens of an answer as choices of a streamed response, each of which is sent as a chunk."""
        raise NotImplementedError

    async def _events(self, news: News | None, later_news: AsyncIterator[News]) -> AsyncIterator[bytes]:
        """Yield the events of a streamed response. news: first news of the answers. later_news: all others. The first chunk has the
        warnings about the request, the last chunk of an answer the warning about it."""
        options, warnings = self.body.stream_options, self._warnings
        usage: dict[str, Any] = {"usage": None} if options and options.include_usage else {}
        try:
            while news:
                for choice in self.parts(news):
                    end_warning = news.answer.warning if choice["finish_reason"] else ""
                    yield _event(self._body(self.objects[1], [choice], [*warnings, end_warning], **usage))
                    warnings = []
                news = await anext(later_news, None)
            if usage:
                yield _event(self._body(self.objects[1], [], [], usage=self._usage()))
        except ApiError as error:
            yield _event(error.body)
        yield format_sse_event(data_str="[DONE]")

    def _body(self, kind: str, choices: list[Any], warnings: Iterable[str], **fields: Any) -> dict[str, Any]:
        """Return the body of a response or chunk. It has the field `warnings` (ours) only if there are any, each of them once."""
        distinct_warnings = list(dict.fromkeys(filter(None, warnings)))
        if distinct_warnings:
            fields["warnings"] = distinct_warnings
        return {**self._head, "object": kind, "choices": choices, **fields}

    def _usage(self) -> dict[str, int]:
        """Count the tokens. A prompt counts once, however many answers it gets."""
        prompt = sum(len(request.ids) for request in self.requests[:: self.body.n or 1])
        completion = sum(len(answer.tokens) for answer in self.answers.answers)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _event(body: dict[str, Any]) -> bytes:
    """Return a server-sent event with a JSON body."""
    return format_sse_event(data_str=json.dumps(body, ensure_ascii=False, separators=(",", ":")))


class _Completions(_Responses):
    """Response of /v1/completions."""

    id_prefix, objects = "cmpl", ("text_completion", "text_completion")

    def __init__(self, *arguments: Any):
        """Prepare the response, with a converter of log-probabilities for each answer if the client asks for them."""
        super().__init__(*arguments)
        self._has_logprobs = self.body.experts or self.body.logprobs is not None
        hidden_ids = [[] if self.body.echo else request.ids for request in self.requests]
        self._converters = [CompletionTokens(self.served.texts, ids) for ids in hidden_ids if self._has_logprobs]

    def choice(self, news: News) -> dict[str, Any]:
        """Return tokens of an answer, new ones or all, as a choice. With echo the first choice begins with the prompt."""
        text, tokens = news.text, news.tokens
        if news.first and self.body.echo:
            text = self.served.tokenizer.decode(news.answer.request.ids) + text
            tokens = [*news.answer.prompt, *tokens]
        logprobs = self._converters[news.number].to_logprobs(tokens) if self._has_logprobs and tokens else None
        if logprobs and self.body.experts:  # ours: for each token its expert in each segment
            ids, decoder = self._converters[news.number].ids, self.served.thread.engine.decoder
            logprobs["experts"] = decoder.experts(self.domain, ids)[:, -len(tokens) :].T.tolist()
        return {"index": news.number, "text": text, "logprobs": logprobs, "finish_reason": news.finish}

    def parts(self, news: News) -> list[dict[str, Any]]:
        choice = self.choice(news)
        return [choice] if choice["text"] or choice["logprobs"] or news.finish else []


class _ChatCompletions(_Responses):
    """Response of /v1/chat/completions."""

    id_prefix, objects = "chatcmpl", ("chat.completion", "chat.completion.chunk")

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._template = self.served.templates[self.domain.name]
        self._texts = [""] * len(self.requests)

    def choice(self, news: News) -> dict[str, Any]:
        message = {"role": "assistant", "content": self._content(news.text), "refusal": None}
        logprobs = chat_logprobs(self.served.texts, news.tokens) if self.body.logprobs else None
        return {"index": news.number, "message": message, "logprobs": logprobs, "finish_reason": news.finish}

    def parts(self, news: News) -> list[dict[str, Any]]:
        """Return the role of the message before its first tokens, its new content, and the reason of its end after its last."""
        logprobs = chat_logprobs(self.served.texts, news.tokens) if self.body.logprobs and news.tokens else None
        old_text = self._texts[news.number]
        new_text = self._texts[news.number] = old_text + news.text
        content = self._content(new_text)[len(self._content(old_text)) :]
        empty: dict[str, Any] = {"index": news.number, "delta": {}, "logprobs": None, "finish_reason": None}
        first_part = [empty | {"delta": {"role": "assistant", "content": ""}}] if news.first else []
        content_part = [empty | {"delta": {"content": content}, "logprobs": logprobs}] if content or logprobs else []
        last_part = [empty | {"finish_reason": news.finish}] if news.finish else []
        return first_part + content_part + last_part

    def _content(self, text: str) -> str:
        """Return a text of an answer, or its beginning, without the template's blank, which structured answers do not have."""
        return text if self.body.structure else self._template.without_blanks(text)
