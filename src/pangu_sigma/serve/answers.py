"""Answers of one HTTP request, passed from the engine's thread to the handler in the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import cast

from pangu_sigma.config import ConfigError
from pangu_sigma.errors import UserError
from pangu_sigma.generate.engine import QueueFull
from pangu_sigma.generate.request import Answer, Request, Token
from pangu_sigma.serve.engine_thread import EngineThread
from pangu_sigma.serve.prometheus import Metrics
from pangu_sigma.serve.refusals import ApiError, stopping
from pangu_sigma.serve.responses import FinishReason

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerDelta:
    """New tokens of one answer to an HTTP request, which may get several. index: number of the answer, from 0. first: True for the
    answer's first tokens. finish: reason why the answer has ended; None while it goes on."""

    index: int
    answer: Answer
    first: bool
    tokens: list[Token]
    finish: FinishReason | None

    @property
    def text(self) -> str:
        """Text of the new tokens."""
        return "".join(token.text for token in self.tokens)

    @property
    def warnings(self) -> list[str]:
        """What the client must know of an answer that has ended."""
        return [self.answer.warning] if self.finish and self.answer.warning else []


class Answers:
    """Answers to the prompts of one HTTP request. The caller must call `close`, which frees the lanes of unfinished answers."""

    def __init__(self, thread: EngineThread, metrics: Metrics, requests: list[Request]):
        """Submit the requests to the engine. Raises ApiError if too many wait, or if a request does not fit."""
        self._thread, self._loop = thread, asyncio.get_running_loop()
        self._changed, self._touched = asyncio.Event(), set[int]()
        self._watches = [metrics.watch(request) for request in requests]
        self.answers: list[Answer] = []
        try:
            for index, request in enumerate(requests):
                self.answers.append(thread.submit(request, self._teller(index)))
        except QueueFull as error:
            self.close()
            metrics.refused("busy")
            raise ApiError(
                429, str(error), code="busy", headers={"Retry-After": str(metrics.wait_seconds())}
            ) from error
        except ConfigError as error:
            self.close()
            raise ApiError(400, str(error), "prompt", "invalid_value") from error

    def close(self) -> None:
        """Cancel the answers that are not finished."""
        for answer, watch in zip(self.answers, self._watches, strict=False):
            if answer.finish is None:
                self._thread.cancel(answer)
                watch.ended("abort")

    async def news(self) -> AsyncIterator[AnswerDelta]:
        """Yield new tokens of all answers until all are finished. Raises ApiError if the model fails or the server stops before."""
        sent: dict[int, int] = {}
        going = set(range(len(self.answers)))
        while going:
            await self._changed.wait()
            self._changed.clear()
            touched, self._touched = sorted(self._touched), set()
            for index in touched:
                answer = self.answers[index]
                finish = answer.finish  # read first: a finished answer has all of its tokens
                if finish == "cancelled" or (finish is None and self._thread.failed):
                    self._watches[index].ended("abort" if answer.error is None else "error")
                    raise stopping() if answer.error is None else _failed(answer.error)
                tokens = answer.tokens[sent.get(index, 0) :]
                if index in going and (tokens or finish):
                    self._watches[index].record(len(tokens))
                    yield AnswerDelta(index, answer, index not in sent, tokens, cast(FinishReason | None, finish))
                    sent[index] = sent.get(index, 0) + len(tokens)
                if finish:
                    going.discard(index)
                    self._watches[index].ended(finish)

    async def whole(self) -> list[AnswerDelta]:
        """Wait until all answers are finished, and return each with all of its tokens. Raises ApiError as `news`."""
        async for _ in self.news():
            pass
        ended = enumerate(self.answers)
        return [AnswerDelta(i, a, True, a.tokens, cast(FinishReason, a.finish)) for i, a in ended]

    def _teller(self, index: int) -> Callable[[Answer], None]:
        def tell(answer: Answer) -> None:
            try:
                self._loop.call_soon_threadsafe(self._mark, index)
            except RuntimeError:  # the loop is closed: the server has stopped
                self._thread.cancel(answer)

        return tell

    def _mark(self, index: int) -> None:
        self._touched.add(index)
        self._changed.set()


def _failed(error: Exception) -> ApiError:
    """Log the error of an answer, and return the response to its request."""
    logger.error("an answer failed: %s", error)
    reason = error if isinstance(error, UserError) else "the server's log says why"
    return ApiError(500, f"the model failed: {reason}", code="model_failed")
