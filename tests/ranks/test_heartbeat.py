"""What a rank says of itself, and its stack when it is asked for.

Ranks that stand still are noticed, and the one that the others wait for is named.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.chaos.launched import eventually, launched
from pangu_sigma.ranks.heartbeat import HEARTBEATS_VARIABLE, Heartbeat, Watchdog, last_beat, write_stacks

WAITS = """
import threading
from pangu_sigma.ranks.heartbeat import Heartbeat
def waiting_in_the_main_thread():
    threading.Event().wait()
Heartbeat(3).beat("step 7")
waiting_in_the_main_thread()
"""

BEATS = """
import os, time
from pangu_sigma.ranks.heartbeat import Heartbeat
rank = int(os.environ["RANK_ID"])
heart = Heartbeat(rank)
def reads_a_batch_for_ever():
    time.sleep(600)
print("rank", rank, flush=True)
for step in range(1, 600):
    heart.beat(f"the batch of step {step}")
    if rank == HANGS and step == 5:
        reads_a_batch_for_ever()
    heart.beat(f"step {step}")
    if step == 5 and HANGS >= 0:
        time.sleep(600)
    time.sleep(0.05)
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
    assert (beat.number, beat.doing) == (2, "the save after step 1")
    assert 0 <= time.monotonic() - beat.at < 60
    assert last_beat(tmp_path, 0) is None
    heart.beat("step 2")
    assert last_beat(tmp_path, 2).doing == "step 2", "and nothing of the longer one before"
    heart.beat("é" * 1000)
    assert last_beat(tmp_path, 2).doing.startswith("é" * 100)


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


def test_without_a_launcher_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(HEARTBEATS_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    Heartbeat(0).beat("step 1")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_does_not_stop_the_rank(tmp_path, monkeypatch):
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
        write_stacks({3: rank.pid})
        eventually(lambda: "waiting_in_the_main_thread" in log.read_text())
        assert rank.poll() is None
    finally:
        rank.kill()
        rank.wait()


def test_a_rank_that_hangs_is_named_with_its_stack_and_all_are_stopped(tmp_path):
    with launched(BEATS.replace("HANGS", "1"), tmp_path, ranks=2, hang_timeout=2.0) as it:
        assert it.wait() == 1
        assert it.left() == []
    assert "no progress for 2 s (hang_timeout): rank 1 in the batch of step 5; late on this node: 2 of 2" in it.errors
    assert "in reads_a_batch_for_ever" in it.errors


def errors_when_rank_0_is_stopped(program: str, folder: Path, hang_timeout: float) -> str:
    with launched(program, folder, ranks=2, hang_timeout=hang_timeout) as it:
        eventually(lambda: any(last_beat(logs, 0) for logs in folder.iterdir()))
        os.kill(it.rank(0), signal.SIGSTOP)
        assert it.wait() == 1
        assert it.left() == []
    return it.errors


def test_a_rank_that_was_stopped_is_named(tmp_path):
    errors = errors_when_rank_0_is_stopped(BEATS.replace("HANGS", "-1"), tmp_path, hang_timeout=2.0)
    assert "rank 0 in " in errors
    assert "(its process is stopped)" in errors


def test_a_stopped_rank_is_named_when_another_process_fails_before_the_time_is_over(tmp_path):
    fails = BEATS.replace("HANGS", "-1") + "    if rank == 1 and step == 60:\n        os._exit(5)\n"
    errors = errors_when_rank_0_is_stopped(fails, tmp_path, hang_timeout=600.0)
    assert "rank 1 ended with status 5 and rank 0 in " in errors
    assert "(its process is stopped)" in errors


def test_ranks_that_make_progress_and_ranks_that_have_not_begun_are_left_alone(tmp_path):
    (tmp_path / "heartbeat_0").write_text(f"3 {time.monotonic() - 1} step 2")
    assert last_beat(tmp_path, 1) is None
    assert Watchdog(tmp_path, 60.0).hung({0: os.getpid(), 1: os.getpid()}) is None


@pytest.mark.parametrize("seconds", [3600.0, -86_400.0], ids=["forwards", "backwards"])
def test_a_clock_that_is_set_ends_no_run_and_hides_no_hang(tmp_path, monkeypatch, seconds):
    monkeypatch.setenv(HEARTBEATS_VARIABLE, str(tmp_path))
    Heartbeat(0).beat("step 2")
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + seconds)
    pids = {0: os.getpid()}
    assert Watchdog(tmp_path, 1800.0).hung(pids) is None
    time.sleep(0.02)
    assert "rank 0 in step 2" in (Watchdog(tmp_path, 0.01).hung(pids) or "")


def test_without_a_limit_nobody_is_hung(tmp_path):
    (tmp_path / "heartbeat_0").write_text("3 0.0 step 2")
    assert Watchdog(tmp_path, 0.0).hung({0: os.getpid()}) is None
