"""POST /v1/completions and /v1/chat/completions: from the body of a request to the engine, and from tokens to the response.

The responses have the form of the types in OpenAI's own package, against which the tests check them. "Ours" marks other fields.
"""

from __future__ import annotations

import difflib
import json
import logging
import secrets
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import chain, count
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.sse import format_sse_event

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import Domain
from pangu_sigma.generate.chat_template import ChatTemplate, Role
from pangu_sigma.generate.request import Request
from pangu_sigma.generate.sampling import Sampling
from pangu_sigma.generate.structure import Structure
from pangu_sigma.generate.text import BLANK_AT_THE_END, ends_in_blank
from pangu_sigma.serve.engine_thread import Answers, News
from pangu_sigma.serve.logprobs import CompletionTokens, chat_logprobs
from pangu_sigma.serve.prompts import TOO_LONG
from pangu_sigma.serve.refusals import ApiError
from pangu_sigma.serve.schemas import ChatRequest, CompletionRequest, GenerationRequest, WithoutEffect
from pangu_sigma.serve.served import PREFIX, Served

logger = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 16
"""Default of max_tokens of completions, as in OpenAI's interface."""
_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second one is for nginx


async def complete(request: HttpRequest, answers: Answers, body: CompletionRequest) -> Response:
    """Answer a request for completions. Raises ApiError."""
    served, domain = domain_of(request, body.model)
    logprobs = 0 if body.experts and body.logprobs is None else body.logprobs
    _check(served, "logprobs", logprobs or 0, "logprobs")
    prompts, warnings = await _prompts(served, body, domain)
    new = room_for(served, prompts, body.max_tokens, DEFAULT_MAX_TOKENS)
    structure = await _structure(served, body, domain)
    options = {"logprobs": logprobs, "prompt_logprobs": logprobs if body.echo else None, "structure": structure}
    answers.ask(make_requests(served, body, domain, prompts, new, options))
    return await _Completions(served, answers, body, domain, warnings).respond()


async def answer_chat(request: HttpRequest, answers: Answers, body: ChatRequest) -> Response:
    """Answer a request for chat completions. Raises ApiError."""
    served, domain = domain_of(request, body.model)
    _check(served, "top_logprobs", body.top_logprobs or 0, "logprobs")
    _check(served, "messages", len(body.messages), "messages")
    template = ChatTemplate.of(domain, served.config.chat)
    wanted = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    room_for(served, [[]], wanted, 0)
    messages: list[tuple[Role, str]] = [
        ("system" if message.role == "developer" else message.role, message.text) for message in body.messages
    ]
    make_prompt = served.prompts.chat_prompt
    ids, warnings = await served.prompts.in_thread(make_prompt, messages, domain, template, wanted)
    new = room_for(served, [ids], wanted, served.length)
    structure = await _structure(served, body, domain)
    stop = template.stop if structure is None else ()  # a structured answer ends once it is whole
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    options = {"logprobs": logprobs, "structure": structure}
    answers.ask(make_requests(served, body, domain, [ids], new, options, stop))
    return await _Chats(served, answers, body, domain, warnings).respond()


def domain_of(request: HttpRequest, name: str | None) -> tuple[Served, Domain]:
    """Return what is served, and the domain that answers a request. name: name of the model in the body; the path may have one too.

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
        (near,) = difflib.get_close_matches(name[:100], domains, n=1, cutoff=0.0)
        reason = f"model: there is no {name[:100]!r} here; the nearest is {near}, and /v1/models lists all"
        raise ApiError(404, reason, "model", "model_not_found")
    return served, domains[name or names]


async def _prompts(served: Served, body: CompletionRequest, domain: Domain) -> tuple[list[list[int]], list[str]]:
    """Return the token ids of each prompt, and warnings."""
    single = isinstance(body.prompt, str) or isinstance(body.prompt[0], int)
    inputs: list[Any] = [body.prompt] if single else [*body.prompt]
    _check(served, "prompt", len(inputs), "prompts")
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


def room_for(served: Served, prompts: Sequence[list[int]], wanted: int | None, usual: int) -> list[int]:
    """Return how many new tokens each prompt may get. wanted: the client's max_tokens; usual: the default without it.

    Raises ApiError if a prompt, or prompt and new tokens together, exceed model.seq_length.
    """
    rooms = [served.length - len(ids) for ids in prompts]
    for ids, room in zip(prompts, rooms, strict=True):
        if room < (wanted or 0):
            said, fix = (f" and max_tokens is {wanted}", " or lower max_tokens") if wanted else ("", "")
            reason = f"{len(ids)} tokens{said}; together they may be {served.length}; shorten the prompt{fix}"
            raise ApiError.invalid("prompt" if room < 1 else "max_tokens", f"the prompt has {reason}", TOO_LONG)
    return [min(usual, room) if wanted is None else wanted for room in rooms]


async def _structure(served: Served, body: GenerationRequest, domain: Domain) -> Structure | None:
    """Return the structure that a request wants of its answers. Raises ApiError for one that cannot be followed."""
    if body.structure is None:
        return None
    parameter, kind, what = body.structure
    try:
        return await served.prompts.in_thread(served.structures.compile, kind, what, domain)
    except ConfigError as error:
        raise ApiError.invalid(parameter, str(error)) from error


def make_requests(
    served: Served,
    body: GenerationRequest,
    domain: Domain,
    prompts: Sequence[list[int]],
    new: Sequence[int],
    options: dict[str, Any],
    stop: tuple[str, ...] = (),
) -> list[Request]:
    """Make the engine's requests, body.n for each prompt. Raises ApiError for parameters beyond a limit.

    new: maximum number of new tokens of each prompt. options: more fields of `Request`. stop: stop strings besides the client's.
    """
    n, stops = body.n or 1, (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    bias = tuple((int(token), float(value)) for token, value in (body.logit_bias or {}).items())
    _check(served, "n", n, "n")
    _check(served, "n", len(prompts) * n, "waiting")
    _check(served, "stop", len(stops), "stops")
    _check(served, "stop", max(map(len, stops), default=0), "stop_characters")
    _check(served, "stop_token_ids", len(body.stop_token_ids or ()), "stops")
    for parameter, ids in (("stop_token_ids", body.stop_token_ids or []), ("logit_bias", [token for token, _ in bias])):
        try:
            served.tokenizer.rows(ids, domain)
        except ConfigError as error:
            raise ApiError.invalid(parameter, str(error)) from error
    names = ("top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    given = {name: value for name in names if (value := getattr(body, name)) is not None}
    options = options | {
        "sampling": Sampling(1.0 if body.temperature is None else body.temperature, max(body.top_k or 0, 0), **given),
        "stop": stops + stop,
        "stop_ids": tuple(body.stop_token_ids or ()),
        "ignore_eot": bool(body.ignore_eos),
        "logit_bias": bias,
    }
    first = secrets.randbits(53) if body.seed is None else body.seed
    seeds: defaultdict[tuple[int, ...], count[int]] = defaultdict(lambda: count(first))  # of each prompt
    return [
        Request(domain, tuple(ids), most, seed=next(seeds[tuple(ids)]), **options)
        for ids, most in zip(prompts, new, strict=True)
        for _ in range(n)
    ]


def _check(served: Served, parameter: str, number: int, limit: str) -> None:
    """Raise ApiError if the number that a parameter of a request asks for is above a limit. limit: a field of `Limits`."""
    if number > (most := getattr(served.limits, limit)):
        fix = f"lower it, or start the server with --set {limit}=N"
        raise ApiError.invalid(parameter, f"{number} is more than {most}, the limit {limit} of this server; {fix}")


class _Responses:
    """Response to one request, as a whole or as a stream of chunks."""

    id_prefix: str
    objects: tuple[str, str]  # values of the field `object` of the whole response and of a chunk

    def __init__(self, served: Served, answers: Answers, body: Any, domain: Domain, warnings: Iterable[str]):
        self.served, self.answers, self.body, self.domain = served, answers, body, domain
        self._head = {"id": f"{self.id_prefix}-{uuid.uuid4().hex}", "created": int(time.time())}
        self._head |= {"model": PREFIX + domain.name, "system_fingerprint": served.fingerprint}
        self._warnings = [*without_effect(served, body), *warnings]

    async def respond(self) -> Response:
        """Return the response. A stream begins with the first token: what fails before has a status of its own."""
        if self.body.stream:
            news = self.answers.news()
            events = self._events(await anext(news), news)
            return StreamingResponse(events, media_type="text/event-stream", headers=_STREAM_HEADERS)
        whole = await self.answers.whole()
        warnings = chain(self._warnings, [news.answer.warning for news in whole])
        choices = [self.choice(news) for news in whole]
        return JSONResponse(self._made(self.objects[0], choices, warnings, usage=self._usage()))

    def choice(self, news: News) -> dict[str, Any]:
        """Return a finished answer as a part of the whole response."""
        raise NotImplementedError

    def parts(self, news: News) -> list[dict[str, Any]]:
        """Return the choices that tell news, each for a chunk of its own."""
        raise NotImplementedError

    async def _events(self, news: News | None, rest: AsyncIterator[News]) -> AsyncIterator[bytes]:
        options, warnings = self.body.stream_options, self._warnings
        usage: dict[str, Any] = {"usage": None} if options and options.include_usage else {}
        try:
            while news:
                for choice in self.parts(news):
                    warnings = warnings + ([news.answer.warning] if choice["finish_reason"] else [])
                    yield _event(self._made(self.objects[1], [choice], warnings, **usage))
                    warnings = []
                news = await anext(rest, None)
            if usage:
                yield _event(self._made(self.objects[1], [], [], usage=self._usage()))
        except ApiError as refused:
            yield _event(refused.body)
        yield format_sse_event(data_str="[DONE]")

    def _made(self, kind: str, choices: list[Any], warnings: Iterable[str], **fields: Any) -> dict[str, Any]:
        """Make a response or a chunk. It has the field `warnings` (ours) only if there are some."""
        if different := list(dict.fromkeys(filter(None, warnings))):
            fields["warnings"] = different
        return {**self._head, "object": kind, "choices": choices, **fields}

    def _usage(self) -> dict[str, int]:
        """Count the tokens. A prompt counts once, however many answers it gets."""
        answers = self.answers.answers
        prompt = sum(len(answer.request.ids) for answer in answers[:: self.body.n or 1])
        new = sum(len(answer.tokens) for answer in answers)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def without_effect(served: Served, body: GenerationRequest) -> list[str]:
    """Return a warning that names the request's parameters without effect, if there are some. The log names each once."""
    names = [name for name in WithoutEffect.model_fields if getattr(body, name) is not None]
    if new := [name for name in names if name not in served.without_effect]:
        served.without_effect.update(new)
        logger.info("a client sends %s, which is taken and has no effect", ", ".join(new))
    return [f"{', '.join(names)}: without effect on this server"] if names else []


def _event(body: dict[str, Any]) -> bytes:
    return format_sse_event(data_str=json.dumps(body, ensure_ascii=False, separators=(",", ":")))


class _Completions(_Responses):
    id_prefix, objects = "cmpl", ("text_completion", "text_completion")

    def __init__(self, served: Served, answers: Answers, body: CompletionRequest, *more: Any):
        super().__init__(served, answers, body, *more)
        scored = body.experts or body.logprobs is not None
        before = [[] if body.echo else answer.request.ids for answer in answers.answers]
        self._tokens = [CompletionTokens(served.texts, ids) for ids in before if scored]

    def choice(self, news: News) -> dict[str, Any]:
        text, new = news.text, news.tokens
        if news.first and self.body.echo:
            text = self.served.tokenizer.decode(news.answer.request.ids) + text
            new = [*news.answer.prompt, *new]
        logprobs = self._tokens[news.number].to_logprobs(new) if self._tokens and new else None
        if logprobs and self.body.experts:  # ours
            ids, decoder = self._tokens[news.number].ids, self.served.thread.engine.decoder
            logprobs["experts"] = decoder.experts(self.domain, ids)[:, -len(new) :].T.tolist()
        return {"index": news.number, "text": text, "logprobs": logprobs, "finish_reason": news.finish}

    def parts(self, news: News) -> list[dict[str, Any]]:
        choice = self.choice(news)
        return [choice] if choice["text"] or choice["logprobs"] or news.finish else []


class _Chats(_Responses):
    """The content of a message is the text of its tokens, without the blank of the template at its start, which a structured answer
    does not have."""

    id_prefix, objects = "chatcmpl", ("chat.completion", "chat.completion.chunk")

    def __init__(self, served: Served, answers: Answers, *more: Any):
        super().__init__(served, answers, *more)
        self._template = ChatTemplate.of(self.domain, served.config.chat)
        self._texts = [""] * len(answers.answers)

    def choice(self, news: News) -> dict[str, Any]:
        message = {"role": "assistant", "content": self._content(news.text), "refusal": None}
        logprobs = chat_logprobs(self.served.texts, news.tokens) if self.body.logprobs else None
        return {"index": news.number, "message": message, "logprobs": logprobs, "finish_reason": news.finish}

    def parts(self, news: News) -> list[dict[str, Any]]:
        logprobs = chat_logprobs(self.served.texts, news.tokens) if self.body.logprobs and news.tokens else None
        before = self._texts[news.number]
        after = self._texts[news.number] = before + news.text
        text = self._content(after)[len(self._content(before)) :]

        def part(delta: dict[str, str], logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
            return {"index": news.number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

        begin = [part({"role": "assistant", "content": ""})] if news.first else []
        end = [part({}, finish=news.finish)] if news.finish else []
        return begin + ([part({"content": text}, logprobs)] if text or logprobs else []) + end

    def _content(self, text: str) -> str:
        """Return the content of a message for the text of an answer, or for its beginning."""
        return text if self.body.structure else self._template.without_blanks(text)
