from __future__ import annotations

import os
import signal
import threading

import pytest

from pangu_sigma.training.loop import stop_request


def test_the_signal_is_noted_and_ends_nothing():
    before = signal.getsignal(signal.SIGTERM)
    with stop_request() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_signal_has_its_old_meaning_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), stop_request():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_than_the_main_one_leaves_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with stop_request() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.is_set()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
    assert signal.getsignal(signal.SIGTERM) is before
