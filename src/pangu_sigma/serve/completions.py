"""POST /v1/completions: continuations of prompts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import chain
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from pangu_sigma.domains import Domain
from pangu_sigma.generate.text import BLANK_AT_THE_END, ends_in_blank
from pangu_sigma.serve.answers import AnswerDelta, Answers
from pangu_sigma.serve.logprobs import CompletionTokens
from pangu_sigma.serve.requests import CompletionRequest
from pangu_sigma.serve.responses import Completion, CompletionChoice, Usage, warned
from pangu_sigma.serve.served import Served
from pangu_sigma.serve.streams import EventStream, while_there

DEFAULT_MAX_TOKENS = 16
"""Default of max_tokens, as in OpenAI's interface."""


async def complete(served: Served, request: Request, body: CompletionRequest) -> Response:
    """Answer a request for completions. Raises ApiError."""
    domain = served.domain(body.model, request.scope.get("model"))
    alternatives = 0 if body.experts and body.logprobs is None else body.logprobs
    served.check("logprobs", alternatives or 0, "logprobs")
    prompts, warnings = await _prompts(served, body, domain)
    room = served.room(prompts, body.max_tokens, DEFAULT_MAX_TOKENS)
    structure = await served.structure(body, domain)
    extra = {
        "logprobs": alternatives,
        "prompt_logprobs": alternatives if body.echo else None,
        "structure": structure,
    }
    answers = served.ask(served.requests(body, domain, prompts, room, extra))
    completion = _Completion(served, body, answers, alternatives is not None, warnings)
    if body.stream:
        return EventStream(completion.chunks(), served.limits.send_seconds, answers.close)
    try:
        whole = await while_there(request, completion.whole())
    finally:
        answers.close()
    return Response(whole.json_text(), media_type="application/json")


async def _prompts(served: Served, body: CompletionRequest, domain: Domain) -> tuple[list[list[int]], list[str]]:
    """Return the token ids of each prompt, and warnings."""
    single = isinstance(body.prompt, str) or isinstance(body.prompt[0], int)
    inputs: list[Any] = [body.prompt] if single else [*body.prompt]
    served.check("prompt", len(inputs), "prompts")
    prompts, warnings = [], served.without_effect(body)
    for prompt in inputs:
        if isinstance(prompt, str):
            tags = body.add_special_tokens is not False
            ids = await served.prompts.in_thread(served.prompts.text_prompt, prompt, domain, tags)
            if body.max_tokens != 0 and ends_in_blank(prompt, domain):
                warnings.append(BLANK_AT_THE_END)
            if body.echo and served.tokenizer.decode(ids) != prompt:
                warnings.append("the prompt is shown as the model reads it, which is not quite as it was sent")
        else:
            ids = prompt
        prompts.append(ids)
    return prompts, warnings


class _Completion:
    """Response to one completion request."""

    def __init__(self, served: Served, body: CompletionRequest, answers: Answers, logprobs: bool, warnings: list[str]):
        self._served, self._body, self._answers = served, body, answers
        self._head = {**served.head("cmpl", answers.answers[0].request.domain), "object": "text_completion"}
        self._warnings = warnings
        self._tokens = [
            CompletionTokens(served.texts, bool(body.experts)) if logprobs else None for _ in answers.answers
        ]

    async def whole(self) -> Completion:
        """Wait for all tokens and return the whole response."""
        whole = await self._answers.whole()
        warnings = warned(chain(self._warnings, *(news.warnings for news in whole)))
        choices = [self._choice(news) for news in whole]
        return Completion(**self._head, choices=choices, usage=self._usage(), **warnings)

    async def chunks(self) -> AsyncIterator[Completion]:
        """Yield the response in chunks."""
        options = self._body.stream_options
        usage: dict[str, Any] = {"usage": None} if options and options.include_usage else {}
        warnings = self._warnings
        async for news in self._answers.news():
            choice = self._choice(news)
            if choice.text or choice.logprobs or choice.finish_reason:
                yield Completion(**self._head, choices=[choice], **usage, **warned([*warnings, *news.warnings]))
                warnings = []
        if usage:
            yield Completion(**self._head, choices=[], usage=self._usage())

    def _usage(self) -> Usage:
        return self._served.usage(self._answers.answers, self._body.n or 1)

    def _choice(self, news: AnswerDelta) -> CompletionChoice:
        text, new = news.text, news.tokens
        if news.first and self._body.echo:
            text = self._served.tokenizer.decode(news.answer.request.ids) + text
            new = [*news.answer.prompt, *new]
        tokens = self._tokens[news.index]
        logprobs = tokens.to_logprobs(new) if tokens is not None and new else None
        return CompletionChoice(index=news.index, text=text, logprobs=logprobs, finish_reason=news.finish)
