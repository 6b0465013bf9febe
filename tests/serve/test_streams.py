"""Streams end when the client does, and a client that takes nothing is left."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from starlette.requests import ClientDisconnect

from pangu_sigma.serve.refusals import ApiError
from pangu_sigma.serve.responses import Usage
from pangu_sigma.serve.streams import EventStream, while_there

BODY = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)


async def never():
    await asyncio.Event().wait()


async def gone():
    await asyncio.sleep(0.01)
    return {"type": "http.disconnect"}


def run(bodies, receive=never, send=None, seconds=5.0) -> tuple[list, list]:
    """What was sent, and how often the end was told."""
    sent, ends = [], []

    async def keep(message):
        sent.append(message)

    async def stream():
        response = EventStream(bodies, seconds, lambda: ends.append(1))
        await response({}, receive, send or keep)

    asyncio.run(asyncio.wait_for(stream(), 60))
    return sent, ends


def test_bodies_are_events_and_done_is_the_last():
    async def two():
        yield BODY
        yield BODY

    sent, ends = run(two())
    text = BODY.json_text()
    assert [m["body"].decode() for m in sent[1:]] == [f"data: {text}\n\n"] * 2 + ["data: [DONE]\n\n"]
    assert [m["more_body"] for m in sent[1:]] == [True, True, False]
    headers = dict(sent[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert b"content-length" not in headers
    assert ends == [1]


def test_a_refusal_in_the_middle_is_an_event():
    async def breaks():
        yield BODY
        raise ApiError(503, "broken off")

    sent, ends = run(breaks())
    assert b'"message":"broken off"' in sent[-2]["body"]
    assert sent[-1]["body"] == b"data: [DONE]\n\n"
    assert ends == [1]


def test_a_client_that_goes_ends_the_bodies():
    closed = []

    async def endless():
        try:
            while True:
                yield BODY
                await asyncio.sleep(0.001)
        finally:
            closed.append(1)

    _, ends = run(endless(), gone)
    assert (closed, ends) == ([1], [1])


def test_a_client_that_takes_nothing_is_left():
    async def one():
        yield BODY

    async def stuck(message):
        if message["type"] == "http.response.body":
            await never()

    with pytest.raises(TimeoutError):
        run(one(), send=stuck, seconds=0.05)


def test_work_goes_on_while_the_client_is_there():
    async def work():
        await asyncio.sleep(0.02)
        return 3

    ended = []

    async def endless():
        try:
            await never()
        finally:
            ended.append(1)

    assert asyncio.run(while_there(SimpleNamespace(receive=never), work())) == 3
    with pytest.raises(ClientDisconnect):
        asyncio.run(while_there(SimpleNamespace(receive=gone), endless()))
    assert ended == [1]
