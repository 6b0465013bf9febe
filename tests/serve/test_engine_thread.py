"""The engine in its thread and the handlers: all tokens, in order, once; lanes given back whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from helpers.fake_decoder import FakeDecoder

from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Request
from pangu_sigma.serve.engine_thread import Answers, EngineThread
from pangu_sigma.serve.prometheus import Metrics
from pangu_sigma.serve.refusals import ApiError

NAMES = {"up": "sigma-up", "reversed": "sigma-reversed"}


class FailingDecoder(FakeDecoder):
    """Fails at the readings with these numbers."""

    fails: tuple[int, ...] = ()
    readings = 0

    def read(self, chunks):
        self.readings += 1
        if self.readings in self.fails:
            raise ValueError(f"reading {self.readings}")
        return super().read(chunks)


def requests(engine: Engine, number: int, tokens: int = 20) -> list[Request]:
    return [Request(engine.decoder.up, (1, 2, i), tokens, ignore_eot=True) for i in range(number)]


def run(decoder: FakeDecoder, work: Callable[[EngineThread], Awaitable[None]]) -> None:
    """Let an engine with room for three that wait work in its thread, which `work` starts."""
    engine = Engine(decoder, waiting=3)
    thread = EngineThread(engine, Metrics(engine, NAMES))

    async def with_end() -> None:
        try:
            await asyncio.wait_for(work(thread), 60)
        finally:
            if thread.loop:
                thread.end()

    asyncio.run(with_end())


def test_news_are_all_tokens_in_order_and_the_end_last():
    engine = Engine(FakeDecoder(seq_length=200))
    expected = [[t.id for t in a.tokens] for a in engine.complete(requests(engine, 3))]

    async def work(thread):
        answers = Answers(thread)
        thread.start()
        found, firsts, ends = [[] for _ in range(3)], [0] * 3, []
        async for news in answers.news(requests(thread.engine, 3)):
            assert news.number not in [index for index, _ in ends]
            firsts[news.number] += news.first
            found[news.number] += [token.id for token in news.tokens]
            if news.finish:
                ends.append((news.number, news.finish))
        assert found == expected
        assert firsts == [1] * 3
        assert sorted(ends) == [(0, "length"), (1, "length"), (2, "length")]

    run(FakeDecoder(lanes=2, seq_length=200), work)


def test_a_step_wakes_the_handlers_once_for_all_of_its_tokens(monkeypatch):
    decoder = FailingDecoder(lanes=3, seq_length=200)

    async def work(thread):
        answers, woken, loop = Answers(thread), [], asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *call: woken.append(call) or wake(*call))
        whole = asyncio.create_task(answers.wait(requests(thread.engine, 3)))
        await asyncio.sleep(0)  # all are submitted, so that one step reads them
        thread.start()
        whole = await whole
        assert [len(news.tokens) for news in whole] == [20] * 3
        assert len(woken) == decoder.readings

    run(decoder, work)


def test_all_or_nothing_is_taken():
    async def work(thread):
        engine, (first, second, third) = thread.engine, (Answers(thread) for _ in range(3))
        waits = asyncio.create_task(first.wait(requests(engine, 2)))
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="3 requests wait already") as refused:
            await second.wait(requests(engine, 2))
        assert refused.value.status_code == 429
        second.close()
        engine.step()
        assert engine.waiting == 0, "the one that was taken is let go"
        with pytest.raises(ApiError, match="no tokens"):
            await third.wait([*requests(engine, 1), Request(engine.decoder.up, ())])
        third.close()
        first.close()
        waits.cancel()
        engine.step()
        assert (engine.running, engine.waiting) == (0, 0)

    run(FakeDecoder(lanes=2, seq_length=200), work)


def test_it_sleeps_until_it_is_asked():
    async def work(thread):
        thread.start()
        for _ in range(3):
            answers = Answers(thread)
            (news,) = await answers.wait(requests(thread.engine, 1, 3))
            assert len(news.tokens) == 3
        asked = len(thread.engine.decoder.asked)
        await asyncio.sleep(0.05)
        assert len(thread.engine.decoder.asked) == asked

    run(FakeDecoder(), work)


def test_a_failed_step_ends_what_ran_and_nothing_else():
    async def work(thread):
        first, second = Answers(thread), Answers(thread)
        waits = [asyncio.create_task(answers.wait(requests(thread.engine, 1, 3))) for answers in (first, second)]
        await asyncio.sleep(0)
        thread.start()
        with pytest.raises(ApiError, match="the model failed"):
            await waits[0]
        (news,) = await waits[1]
        assert (news.finish, thread.failed) == ("length", False)

    decoder = FailingDecoder(lanes=1)
    decoder.fails = (2,)
    run(decoder, work)
