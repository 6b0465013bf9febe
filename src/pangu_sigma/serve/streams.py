"""Sending of responses: they stop at once when the client disconnects, and after a timeout when it reads nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from pangu_sigma.serve.refusals import ApiError
from pangu_sigma.serve.responses import ResponseBody

_Result = TypeVar("_Result")

DONE = "data: [DONE]\n\n"
"""Last server-sent event of a streaming response."""


async def while_there(request: Request, work: Awaitable[_Result]) -> _Result:
    """Return the result of `work`. If the client disconnects, cancels it and raises ClientDisconnect."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        await _cancel(task, gone)


class EventStream(Response):
    """Streaming response of server-sent events, one for each body, then `[DONE]`. on_end: called when the stream ends."""

    media_type = "text/event-stream"

    def __init__(self, bodies: AsyncIterator[ResponseBody], seconds: float, on_end: Callable[[], None]):
        """seconds: timeout for sending one event to the client."""
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._bodies, self._seconds, self._on_end = bodies, seconds, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer, gone = asyncio.ensure_future(self._write(send)), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({writer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()
        finally:
            self._on_end()
            await _cancel(writer, gone)

    async def _write(self, send: Send) -> None:
        async def event(text: str, more: bool = True) -> None:
            body = {"type": "http.response.body", "body": text.encode(), "more_body": more}
            async with asyncio.timeout(self._seconds):  # Python 3.11's wait_for may lose a cancellation
                await send(body)

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with aclosing(self._bodies) as bodies:  # type: ignore[type-var]
                async for body in bodies:
                    await event(f"data: {body.json_text()}\n\n")
        except ApiError as refused:
            await event(f"data: {refused.error_body().model_dump_json()}\n\n")
        await event(DONE, more=False)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
