"""Answers to an HTTP request, and the thread that steps the engine, which generates them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from typing import NamedTuple

from pangu_sigma.config import ConfigError
from pangu_sigma.errors import UserError
from pangu_sigma.generate.engine import Engine, QueueFull
from pangu_sigma.generate.request import Answer, Request, Token
from pangu_sigma.serve.prometheus import AnswerWatch, Metrics
from pangu_sigma.serve.refusals import ApiError

logger = logging.getLogger(__name__)

_FAILURES = 3
"""Number of consecutive failed steps after which the engine is given up."""


class EngineThread:
    """Thread that runs the steps of the engine, which generate text.

    handlers: for each answer that the engine has, the answers to the same HTTP request, whose handler runs. stopped: True once
    `stop` was called. failed: True after repeated errors of the engine, which end the thread. loop: event loop of the handlers;
    None before the start. wake: set when there may be something to do.
    """

    def __init__(self, engine: Engine, metrics: Metrics):
        self.engine, self.metrics = engine, metrics
        self.handlers: dict[Answer, Answers] = {}
        self.stopped = self.failed = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self.wake, self._ending = threading.Event(), False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread. The event loop of the handlers must call it."""
        self.loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Break off all open requests, and refuse later ones: the server ends. The event loop must call this method."""
        self.stopped = True
        open_requests = {*self.handlers.values()}  # a request has an entry for each of its answers
        if open_requests:
            logger.warning("%d requests are not finished, and are broken off", len(open_requests))
        for answers in open_requests:
            answers.break_off()

    def end(self) -> None:
        """End the thread after its current step, and wait for that."""
        self._ending = True
        self.wake.set()
        self._thread.join()

    def _wake_handlers(self, updated: list[Answer]) -> None:
        """Wake the handlers of answers that a step has updated. The event loop runs this method."""
        for answer in updated:
            if answer in self.handlers:  # the request may have ended, because its client disconnected
                self.handlers[answer].changed.set()

    def _work(self) -> None:
        """Step the engine until `end` is called or _FAILURES steps fail one after another. The thread runs this method."""
        failures = 0
        while not self._ending and failures < _FAILURES:
            self.wake.clear()  # before the step, so that a request that comes during it wakes the thread
            try:
                if self.engine.step():
                    failures = 0
                else:
                    self.wake.wait()
            except Exception:  # the engine has cancelled the running answers; waiting ones may still be answered
                failures += 1
                logger.exception("a step of the engine failed, and so did the answers that ran")
            if self.engine.updated:  # the event loop is woken once for all answers of the step
                self.loop.call_soon_threadsafe(self._wake_handlers, self.engine.updated)  # type: ignore[union-attr]
        if failures == _FAILURES:
            logger.error("%d steps failed one after another; nothing is answered any more", _FAILURES)
            self.failed = True
            self.loop.call_soon_threadsafe(self.stop)  # type: ignore[union-attr]


class News(NamedTuple):
    """New tokens of one of the answers to an HTTP request.

    number: number of the answer. first: True for the answer's first tokens. finish: reason why it has ended; None while it goes on.
    """

    number: int
    answer: Answer
    first: bool
    tokens: list[Token]
    finish: str | None

    @property
    def text(self) -> str:
        """Text of the new tokens."""
        return "".join(token.text for token in self.tokens)


class Answers:
    """Answers to one HTTP request. Its handler must call `close`, which frees the lanes of unfinished answers. changed: set when
    there may be news."""

    def __init__(self, thread: EngineThread):
        self._thread, self._engine, self._metrics = thread, thread.engine, thread.metrics
        self.changed, self._is_broken_off = asyncio.Event(), False
        self.answers: list[Answer] = []
        self._watches: list[AnswerWatch] = []  # of the same answers

    async def news(self, requests: list[Request]) -> AsyncIterator[News]:
        """Submit requests, and yield new tokens of all answers until all are finished. Raises ApiError if a request cannot be
        answered now, and if the model fails or the server ends before."""
        self._submit(requests)
        unfinished = dict.fromkeys(range(len(requests)), 0)  # by number of an answer, how many tokens were yielded
        while unfinished:
            await self.changed.wait()
            self.changed.clear()
            for number, yielded_count in list(unfinished.items()):
                answer, watch = self.answers[number], self._watches[number]
                finish = answer.finish  # read before the tokens: a finished answer has all of them
                if finish == "cancelled":
                    watch.ended("abort" if answer.error is None else "error")
                    raise _server_stopping() if answer.error is None else _failure(answer.error)
                tokens = answer.tokens[yielded_count:]
                if tokens or finish:
                    watch.record(len(tokens))
                    yield News(number, answer, not yielded_count, tokens, finish)
                unfinished[number] += len(tokens)
                if finish:
                    del unfinished[number]
                    watch.ended(finish)
            if unfinished and self._is_broken_off:
                raise _server_stopping()

    async def wait(self, requests: list[Request]) -> list[News]:
        """Submit requests, and return all answers with all of their tokens once they are finished. Raises ApiError as `news`."""
        async for _ in self.news(requests):
            pass
        return [News(number, answer, True, answer.tokens, answer.finish) for number, answer in enumerate(self.answers)]

    def _submit(self, requests: list[Request]) -> None:
        """Submit requests to the engine. Raises ApiError if too many wait, if one does not fit, or if the server ends."""
        if self._thread.stopped:
            raise _server_stopping()
        try:
            for request in requests:
                answer = self._engine.submit(request)
                self.answers.append(answer)
                self._watches.append(AnswerWatch(self._metrics, request))
                self._thread.handlers[answer] = self
        except QueueFull as error:
            self._metrics.refused.labels("busy").inc()
            headers = {"Retry-After": str(self._metrics.wait_seconds())}
            raise ApiError(429, str(error), code="busy", headers=headers) from error
        except ConfigError as error:
            raise ApiError(400, str(error), "prompt", "invalid_value") from error
        self._thread.wake.set()

    def break_off(self) -> None:
        """Let `news` raise ApiError, because the server ends or the client has disconnected."""
        self._is_broken_off = True
        self.changed.set()

    def close(self) -> None:
        """Cancel the answers that are not finished, so that the engine frees their lanes."""
        for answer, watch in zip(self.answers, self._watches, strict=True):
            self._thread.handlers.pop(answer)
            self._engine.cancel(answer)
            watch.ended("abort")  # ignored for a finished answer
        self._thread.wake.set()


def _server_stopping() -> ApiError:
    """Return the response to a request that the end of the server breaks off."""
    reason = "this request is broken off: the server ends; ask another one, or again later"
    return ApiError(503, reason, code="server_stopping", headers={"Connection": "close"})


def _failure(error: Exception) -> ApiError:
    """Log the error of an answer, and return the response to its request."""
    logger.error("an answer failed: %s", error)
    reason = error if isinstance(error, UserError) else "the server's log says why"
    return ApiError(500, f"the model failed: {reason}", code="model_failed")
