"""The engine in its thread: it works while there is something to do, and its bugs end answers, not the server."""

from __future__ import annotations

import threading
import time

import pytest
from helpers.fake_decoder import FakeDecoder

from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Request
from pangu_sigma.serve.engine_thread import EngineThread


class FailingDecoder(FakeDecoder):
    """Fails at the readings with these numbers."""

    fails: tuple[int, ...] = ()
    readings = 0

    def read(self, chunks):
        self.readings += 1
        if self.readings in self.fails:
            raise ValueError(f"reading {self.readings}")
        return super().read(chunks)


@pytest.fixture
def threads():
    """Makes threads, and ends them."""
    made = []

    def make(decoder) -> EngineThread:
        made.append(EngineThread(Engine(decoder)))
        made[-1].start()
        return made[-1]

    yield make
    for thread in made:
        thread.end()


def ask(thread, domain, ids=(1, 2), tokens=3):
    """An answer and what says that it has ended."""
    ended = threading.Event()

    def changed(answer):
        if answer.finish or thread.failed:
            ended.set()

    return thread.submit(Request(domain, ids, tokens, ignore_eot=True), changed), ended


def test_it_sleeps_until_it_is_asked(threads):
    decoder = FakeDecoder()
    thread = threads(decoder)
    for _ in range(3):
        answer, ended = ask(thread, decoder.up)
        assert ended.wait(60)
        assert len(answer.tokens) == 3
    asked = len(decoder.asked)
    time.sleep(0.05)
    assert len(decoder.asked) == asked


def test_a_failed_step_ends_what_ran_and_nothing_else(threads):
    decoder = FailingDecoder(lanes=1)
    decoder.fails = (2,)
    thread = threads(decoder)
    first, one = ask(thread, decoder.up)
    second, two = ask(thread, decoder.up)
    assert one.wait(60)
    assert two.wait(60)
    assert (first.finish, second.finish) == ("cancelled", "length")
    assert not thread.failed


def test_steps_that_only_fail_are_the_end(threads):
    decoder, told = FailingDecoder(lanes=1), threading.Event()
    decoder.fails = tuple(range(1, 100))
    thread = threads(decoder)
    thread.on_failure = told.set
    answers = [ask(thread, decoder.up) for _ in range(5)]
    assert told.wait(60)
    assert thread.failed
    assert all(ended.wait(60) for _, ended in answers)
    _, ended = ask(thread, decoder.up)
    assert ended.wait(60), "who asks now is told too"


def test_it_cancels_what_is_not_finished(threads):
    class Slow(FakeDecoder):
        def read(self, chunks):
            time.sleep(0.02)
            return super().read(chunks)

    decoder = Slow(seq_length=1000)
    thread = threads(decoder)
    short, at_once = ask(thread, decoder.up, tokens=3)
    long, ended = ask(thread, decoder.up, tokens=900)
    assert at_once.wait(60)
    thread.cancel_all()
    assert ended.wait(60)
    assert (short.finish, long.finish) == ("length", "cancelled")
