"""POST /v1/chat/completions: answers to chats."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import chain
from typing import Any, cast

from fastapi import Request
from fastapi.responses import Response

from pangu_sigma.generate.chat_template import ChatTemplate, Role
from pangu_sigma.serve.answers import AnswerDelta, Answers
from pangu_sigma.serve.logprobs import chat_logprobs
from pangu_sigma.serve.requests import ChatRequest
from pangu_sigma.serve.responses import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    Delta,
    FinishReason,
    Usage,
    warned,
)
from pangu_sigma.serve.served import Served
from pangu_sigma.serve.streams import EventStream, while_there


async def answer_chat(served: Served, request: Request, body: ChatRequest) -> Response:
    """Answer a request for chat completions. Raises ApiError."""
    domain = served.domain(body.model, request.scope.get("model"))
    served.check("top_logprobs", body.top_logprobs or 0, "logprobs")
    served.check("messages", len(body.messages), "messages")
    template = served.template(domain)
    wanted = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    served.room([[]], wanted, 0)
    messages: list[tuple[Role, str]] = [
        ("system" if each.role == "developer" else each.role, each.text) for each in body.messages
    ]
    ids, warnings = await served.prompts.in_thread(served.prompts.chat_prompt, messages, domain, template, wanted)
    alternatives = (body.top_logprobs or 0) if body.logprobs else None
    structure = await served.structure(body, domain)
    stop = template.stop if structure is None else ()  # what is whole ends by itself
    extra = {"logprobs": alternatives, "stop": stop, "structure": structure}
    answers = served.ask(served.requests(body, domain, [ids], served.room([ids], wanted, served.length), extra))
    chat = _Chat(served, body, answers, template, served.without_effect(body) + warnings)
    if body.stream:
        return EventStream(chat.chunks(), served.limits.send_seconds, answers.close)
    try:
        whole = await while_there(request, chat.whole())
    finally:
        answers.close()
    return Response(whole.json_text(), media_type="application/json")


class _Chat:
    """Response to one chat request. An answer is the text of its tokens, without the blank of the template at its start, which a
    structured answer does not have."""

    def __init__(
        self, served: Served, body: ChatRequest, answers: Answers, template: ChatTemplate, warnings: list[str]
    ):
        self._served, self._body, self._answers = served, body, answers
        self._head = served.head("chatcmpl", answers.answers[0].request.domain)
        self._warnings, self._template = warnings, template
        self._texts = [""] * len(answers.answers)

    async def whole(self) -> ChatCompletion:
        """Wait for all tokens and return the whole response."""
        whole = await self._answers.whole()
        choices = [
            ChatChoice(
                index=news.index,
                message=AssistantMessage(role="assistant", content=self._content(news.text), refusal=None),
                logprobs=chat_logprobs(self._served.texts, news.tokens) if self._body.logprobs else None,
                finish_reason=cast(FinishReason, news.finish),
            )
            for news in whole
        ]
        warnings = warned(chain(self._warnings, *(news.warnings for news in whole)))
        return ChatCompletion(**self._head, object="chat.completion", choices=choices, usage=self._usage(), **warnings)

    async def chunks(self) -> AsyncIterator[ChatChunk]:
        """Yield the response in chunks. The first chunk of each choice has the role, the last one the finish reason."""
        options = self._body.stream_options
        usage: dict[str, Any] = {"usage": None} if options and options.include_usage else {}
        for index in range(len(self._answers.answers)):
            choice = ChatChunkChoice(index=index, delta=_ROLE, logprobs=None, finish_reason=None)
            yield self._chunk([choice], **usage, **warned(self._warnings if index == 0 else []))
        async for news in self._answers.news():
            for choice in self._choices(news):
                yield self._chunk([choice], **usage, **warned(news.warnings if choice.finish_reason else []))
        if usage:
            yield self._chunk([], usage=self._usage())

    def _chunk(self, choices: list[ChatChunkChoice], **fields: Any) -> ChatChunk:
        return ChatChunk(**self._head, object="chat.completion.chunk", choices=choices, **fields)

    def _usage(self) -> Usage:
        return self._served.usage(self._answers.answers, self._body.n or 1)

    def _content(self, text: str) -> str:
        """Return the content of a message for the text of an answer, or for its beginning."""
        return text if self._body.structure else self._template.without_blanks(text)

    def _choices(self, news: AnswerDelta) -> list[ChatChunkChoice]:
        logprobs: ChatLogprobs | None = None
        if self._body.logprobs and news.tokens:
            logprobs = chat_logprobs(self._served.texts, news.tokens)
        before = self._texts[news.index]
        self._texts[news.index] = before + news.text
        text = self._content(before + news.text)[len(self._content(before)) :]
        choices = []
        if text or logprobs:
            delta = Delta(content=text)
            choices.append(ChatChunkChoice(index=news.index, delta=delta, logprobs=logprobs, finish_reason=None))
        if news.finish:
            choices.append(ChatChunkChoice(index=news.index, delta=Delta(), logprobs=None, finish_reason=news.finish))
        return choices


_ROLE = Delta(role="assistant", content="")
