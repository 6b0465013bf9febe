"""Answers in the event loop: all tokens, in order, once; lanes given back whatever happens."""

from __future__ import annotations

import asyncio
import time

import pytest
from helpers.fake_decoder import FakeDecoder

from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Request
from pangu_sigma.serve.answers import Answers
from pangu_sigma.serve.engine_thread import EngineThread
from pangu_sigma.serve.prometheus import Metrics
from pangu_sigma.serve.refusals import ApiError

NAMES = {"up": "sigma-up", "reversed": "sigma-reversed"}


@pytest.fixture
def served():
    """An engine with two lanes and room for three that wait, its thread, its metrics."""
    engine = Engine(FakeDecoder(lanes=2, seq_length=200), waiting=3)
    thread = EngineThread(engine)
    yield engine, thread, Metrics(engine, NAMES)
    thread.end()


def requests(engine: Engine, number: int, tokens: int = 20) -> list[Request]:
    return [Request(engine.decoder.up, (1, 2, i), tokens, ignore_eot=True) for i in range(number)]


def test_news_are_all_tokens_in_order_and_the_end_last(served):
    engine, thread, metrics = served
    expected = [[t.id for t in a.tokens] for a in Engine(FakeDecoder(seq_length=200)).complete(requests(engine, 3))]

    async def run():
        answers = Answers(thread, metrics, requests(engine, 3))
        thread.start()
        found, firsts, ends = [[] for _ in range(3)], [0] * 3, []
        async for news in answers.news():
            assert news.index not in [index for index, _ in ends]
            firsts[news.index] += news.first
            found[news.index] += [token.id for token in news.tokens]
            if news.finish:
                ends.append((news.index, news.finish))
        assert found == expected
        assert firsts == [1] * 3
        assert sorted(ends) == [(0, "length"), (1, "length"), (2, "length")]

    asyncio.run(run())


def test_all_or_nothing_is_taken(served):
    engine, thread, metrics = served

    async def run():
        first = Answers(thread, metrics, requests(engine, 2))
        with pytest.raises(ApiError, match="3 requests wait already") as refused:
            Answers(thread, metrics, requests(engine, 2))
        assert refused.value.status_code == 429
        engine.step()
        assert engine.waiting == 0, "the one that was taken is let go"
        with pytest.raises(ApiError, match="no tokens"):
            Answers(thread, metrics, [*requests(engine, 1), Request(engine.decoder.up, ())])
        first.close()
        engine.step()
        assert (engine.running, engine.waiting) == (0, 0)

    asyncio.run(run())


def test_closing_gives_the_lanes_back(served):
    engine, thread, metrics = served

    async def run():
        answers = Answers(thread, metrics, requests(engine, 2, 190))
        thread.start()
        async for _ in answers.news():
            break
        answers.close()
        until = time.monotonic() + 60
        while engine.running and time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert engine.running == 0
        assert all(len(answer.tokens) < 190 for answer in answers.answers)

    asyncio.run(run())


def test_who_is_gone_with_its_loop_stops_nobody(served):
    engine, thread, metrics = served

    async def leave():
        Answers(thread, metrics, requests(engine, 1, 190))

    asyncio.run(leave())
    thread.start()
    until = time.monotonic() + 60
    while (engine.running or engine.waiting) and time.monotonic() < until:
        time.sleep(0.01)
    assert (engine.running, engine.waiting, thread.failed) == (0, 0, False)
