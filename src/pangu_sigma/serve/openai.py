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
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import chain, count
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
    """Yield the answers of a request. They are cancelled when the request ends, and when the client disconnects before."""
    answers = Answers(request.app.state.served.thread)

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        answers.break_off()

    watch_task = create_task(watch())
    try:
        yield answers
    finally:
        watch_task.cancel()
        answers.close()


RequestAnswers = Annotated[Answers, Depends(_answers)]


@router.post("/v1/completions")
async def completions(request: HttpRequest, answers: RequestAnswers, body: CompletionRequest) -> Response:
    """Continue prompts."""
    served, domain = domain_of(request, body.model)
    logprobs = 0 if body.experts and body.logprobs is None else body.logprobs
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
    """Return the served model, and the domain that answers a request. name: name of the model in the body; the path may have one
    too.

    Raises ApiError for an unknown name, for two different names, and without a name if there are several domains.
    """
    served, of_path = request.app.state.served, request.path_params.get("of_path")
    domains, names = served.domains, ", ".join(served.domains)
    if None not in (name, of_path) and name != of_path:
        raise ApiError.invalid("model", "the body and the path say different ones; say one")
    if (name := name or of_path) is None and len(domains) > 1:
        reason = f"name one of {names}, here or in front of the path: /{next(iter(domains))}/…"
        raise ApiError.invalid("model", f"domains read text differently; {reason}", "missing_required_parameter")
    if name is not None and name not in domains:
        (nearest,) = difflib.get_close_matches(name[:100], domains, n=1, cutoff=0.0)
        reason = f"model: there is no {name[:100]!r} here; the nearest is {nearest}, and /v1/models lists all"
        raise ApiError(404, reason, "model", "model_not_found")
    return served, domains[name or names]


async def _prompts(served: Served, body: CompletionRequest, domain: Domain) -> tuple[list[list[int]], list[str]]:
    """Return (token ids of each prompt, warnings for the client)."""
    single = isinstance(body.prompt, str) or isinstance(body.prompt[0], int)
    inputs: list[Any] = [body.prompt] if single else [*body.prompt]
    prompts, warnings = [], []
    for prompt in inputs:
        ids = prompt
        if isinstance(prompt, str):
            tags = body.add_special_tokens is not False
            ids = await served.prompts.in_thread(served.prompts.text_prompt, prompt, domain, tags)
            if body.max_tokens != 0 and ends_in_blank(prompt, domain):
                warnings.append(BLANK_AT_THE_END)
            if body.echo and served.tokenizer.decode(ids) != prompt:
                warnings.append("the prompt is shown as the model reads it, which is not quite as it was sent")
        prompts.append(ids)
    return prompts, warnings


def room_for(served: Served, prompts: Sequence[list[int]], max_tokens: int | None, default: int) -> list[int]:
    """Return the maximum number of new tokens for each prompt. max_tokens: the client's parameter; default: its value if the client
    sends none.

    Raises ApiError if a prompt, or prompt and new tokens together, exceed model.seq_length.
    """
    rooms = [served.length - len(ids) for ids in prompts]
    for ids, room in zip(prompts, rooms, strict=True):
        if room < (max_tokens or 0):
            limit_text, fix = (f" and max_tokens is {max_tokens}", " or lower max_tokens") if max_tokens else ("", "")
            reason = f"{len(ids)} tokens{limit_text}; together they may be {served.length}; shorten the prompt{fix}"
            raise ApiError.invalid("prompt" if room < 1 else "max_tokens", f"the prompt has {reason}", TOO_LONG)
    return [min(default, room) if max_tokens is None else max_tokens for room in rooms]


async def _structure(served: Served, body: GenerationRequest, domain: Domain) -> Structure | None:
    """Return the structure that a request requires of its answers; None for any text. Raises ApiError for one that is not
    supported."""
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
    client's.
    """
    n, stops = body.n or 1, (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
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
        "sampling": Sampling(**sampling | {"top_k": max(body.top_k or 0, 0)}),
        "stop": stops + stop,
        "stop_ids": tuple(body.stop_token_ids or ()),
        "ignore_eot": bool(body.ignore_eos),
        "logit_bias": bias,
    }
    first_seed = secrets.randbits(53) if body.seed is None else body.seed
    seeds: defaultdict[tuple[int, ...], count[int]] = defaultdict(lambda: count(first_seed))  # of each prompt
    return [
        Request(domain, tuple(ids), max_new_tokens, seed=next(seeds[tuple(ids)]), **options)
        for ids, max_new_tokens in zip(prompts, new_tokens, strict=True)
        for _ in range(n)
    ]


class _Responses:
    """Response to one request, as a whole or as a stream of chunks."""

    id_prefix: str
    objects: tuple[str, str]  # values of the field `object` of the whole response and of a chunk

    def __init__(self, served: Served, answers: Answers, body: Any, requests: list[Request], warnings: Iterable[str]):
        self.served, self.answers, self.body, self.requests = served, answers, body, requests
        self.domain = requests[0].domain
        self._head = {"id": f"{self.id_prefix}-{uuid.uuid4().hex}", "created": int(time.time())}
        self._head |= {"model": PREFIX + self.domain.name, "system_fingerprint": served.fingerprint}
        unused = [name for name in WithoutEffect.model_fields if getattr(body, name) is not None]
        self._warnings = [*([f"{', '.join(unused)}: without effect on this server"] if unused else []), *warnings]

    async def respond(self) -> Response:
        """Return the response. A stream begins with the first token: what fails before has a status of its own."""
        if self.body.stream:
            news = self.answers.news(self.requests)
            events = self._events(await anext(news), news)
            return StreamingResponse(events, media_type="text/event-stream", headers=_STREAM_HEADERS)
        all_news = await self.answers.wait(self.requests)
        warnings = chain(self._warnings, [news.answer.warning for news in all_news])
        choices = [self.choice(news) for news in all_news]
        return JSONResponse(self._body(self.objects[0], choices, warnings, usage=self._usage()))

    def choice(self, news: News) -> dict[str, Any]:
        """Return a finished answer as a part of the whole response."""
        raise NotImplementedError

    def parts(self, news: News) -> list[dict[str, Any]]:
        """Return the choices of a stream for some news; each is sent as a chunk of its own."""
        raise NotImplementedError

    async def _events(self, news: News | None, later_news: AsyncIterator[News]) -> AsyncIterator[bytes]:
        """Yield the events of a streamed response. news: first news of the answers. later_news: all others."""
        options, warnings = self.body.stream_options, self._warnings
        usage: dict[str, Any] = {"usage": None} if options and options.include_usage else {}
        try:
            while news:
                for choice in self.parts(news):
                    warnings = warnings + ([news.answer.warning] if choice["finish_reason"] else [])
                    yield _event(self._body(self.objects[1], [choice], warnings, **usage))
                    warnings = []
                news = await anext(later_news, None)
            if usage:
                yield _event(self._body(self.objects[1], [], [], usage=self._usage()))
        except ApiError as error:
            yield _event(error.body)
        yield format_sse_event(data_str="[DONE]")

    def _body(self, kind: str, choices: list[Any], warnings: Iterable[str], **fields: Any) -> dict[str, Any]:
        """Return the body of a response or chunk. It has the field `warnings` (ours) only if there are some."""
        if distinct_warnings := list(dict.fromkeys(filter(None, warnings))):
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
        super().__init__(*arguments)
        has_logprobs = self.body.experts or self.body.logprobs is not None
        hidden_ids = [[] if self.body.echo else request.ids for request in self.requests]
        self._tokens = [CompletionTokens(self.served.texts, ids) for ids in hidden_ids if has_logprobs]

    def choice(self, news: News) -> dict[str, Any]:
        text, tokens = news.text, news.tokens
        if news.first and self.body.echo:
            text = self.served.tokenizer.decode(news.answer.request.ids) + text
            tokens = [*news.answer.prompt, *tokens]
        logprobs = self._tokens[news.number].to_logprobs(tokens) if self._tokens and tokens else None
        if logprobs and self.body.experts:  # ours
            ids, decoder = self._tokens[news.number].ids, self.served.thread.engine.decoder
            logprobs["experts"] = decoder.experts(self.domain, ids)[:, -len(tokens) :].T.tolist()
        return {"index": news.number, "text": text, "logprobs": logprobs, "finish_reason": news.finish}

    def parts(self, news: News) -> list[dict[str, Any]]:
        choice = self.choice(news)
        return [choice] if choice["text"] or choice["logprobs"] or news.finish else []


class _ChatCompletions(_Responses):
    """Response of /v1/chat/completions. The content of a message is the text of its tokens without the blank of the template at its
    start, which a structured answer does not have."""

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
        logprobs = chat_logprobs(self.served.texts, news.tokens) if self.body.logprobs and news.tokens else None
        old_text = self._texts[news.number]
        new_text = self._texts[news.number] = old_text + news.text
        text = self._content(new_text)[len(self._content(old_text)) :]

        def part(delta: dict[str, str], logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
            return {"index": news.number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

        first_part = [part({"role": "assistant", "content": ""})] if news.first else []
        last_part = [part({}, finish=news.finish)] if news.finish else []
        return first_part + ([part({"content": text}, logprobs)] if text or logprobs else []) + last_part

    def _content(self, text: str) -> str:
        """Return the content of a message for the text of an answer, or for its beginning."""
        return text if self.body.structure else self._template.without_blanks(text)
