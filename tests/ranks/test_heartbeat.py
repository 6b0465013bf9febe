"""What a rank says of itself, and its stack when it is asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from experiments.chaos.launched import eventually
from pangu_sigma.ranks.heartbeat import HEARTBEATS_VARIABLE, STACK_SIGNAL, Heartbeat, last_beat

WAITS = """
import threading
from pangu_sigma.ranks.heartbeat import Heartbeat
def waiting_in_the_main_thread():
    threading.Event().wait()
Heartbeat(3).beat("step 7")
waiting_in_the_main_thread()
"""

BEATS_ON = """
from pangu_sigma.ranks.heartbeat import Heartbeat
heart = Heartbeat(1)
while True:
    heart.beat("step 7")
"""


def test_the_last_beat_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv(HEARTBEATS_VARIABLE, str(tmp_path))
    heart = Heartbeat(2)
    heart.beat("step 1")
    heart.beat("the save after step 1")
    beat = last_beat(tmp_path, 2)
    assert (beat.number, beat.activity) == (2, "the save after step 1")
    assert 0 <= time.monotonic() - beat.at < 60
    assert last_beat(tmp_path, 0) is None
    heart.beat("step 2")
    assert last_beat(tmp_path, 2).activity == "step 2", "and nothing of the longer one before"
    heart.beat("é" * 1000)
    assert last_beat(tmp_path, 2).activity.startswith("é" * 100)


def test_a_rank_that_is_stopped_at_any_moment_leaves_a_whole_beat(tmp_path):
    """Were a beat written in two calls, a stop between them would leave nothing to tell the time by, and nobody would notice it."""
    rank = subprocess.Popen([sys.executable, "-c", BEATS_ON], env=os.environ | {HEARTBEATS_VARIABLE: str(tmp_path)})
    try:
        eventually(lambda: last_beat(tmp_path, 1))
        for _ in range(200):
            rank.send_signal(signal.SIGSTOP)
            os.waitpid(rank.pid, os.WUNTRACED)
            assert last_beat(tmp_path, 1)
            rank.send_signal(signal.SIGCONT)
            time.sleep(0.001)
    finally:
        rank.kill()
        rank.wait()


def test_without_a_launcher_nothing_is_written_and_a_disk_that_refuses_does_not_stop_the_rank(tmp_path, monkeypatch):
    monkeypatch.delenv(HEARTBEATS_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    Heartbeat(0).beat("step 1")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv(HEARTBEATS_VARIABLE, str(tmp_path / "gone"))
    Heartbeat(0).beat("step 1")


@pytest.mark.parametrize("content", ["", "3", "x 1.0 step", "3 y step"])
def test_a_beat_that_is_half_written_is_none(tmp_path, content):
    (tmp_path / "heartbeat_0").write_text(content)
    assert last_beat(tmp_path, 0) is None


def test_a_process_shows_its_stack_when_asked_and_goes_on(tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as output:
        rank = subprocess.Popen(
            [sys.executable, "-c", WAITS], env=os.environ | {HEARTBEATS_VARIABLE: str(tmp_path)}, stderr=output
        )
    try:
        eventually(lambda: last_beat(tmp_path, 3))
        os.kill(rank.pid, STACK_SIGNAL)
        eventually(lambda: "waiting_in_the_main_thread" in log.read_text())
        assert rank.poll() is None
    finally:
        rank.kill()
        rank.wait()
