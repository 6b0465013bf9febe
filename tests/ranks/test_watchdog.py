"""Ranks that stand still are noticed, and the one that the others wait for is named, with its stack."""

from __future__ import annotations

import os
import signal
import time

import pytest

from experiments.chaos.launched import eventually, launched
from pangu_sigma.ranks.heartbeat import HEARTBEATS_VARIABLE, Heartbeat, last_beat
from pangu_sigma.ranks.watchdog import Watchdog

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


def test_a_rank_that_hangs_is_named_with_its_stack_and_all_are_stopped(tmp_path):
    with launched(BEATS.replace("HANGS", "1"), tmp_path, ranks=2, hang_timeout=2.0) as it:
        assert it.wait() == 1
        assert it.left() == []
    assert (
        "no progress for 2 s (hang_timeout): rank 1 in the batch of step 5; other ranks of this node that wait: 1; "
        in it.errors
    )
    assert "in reads_a_batch_for_ever" in it.errors


def test_a_rank_that_a_signal_has_paused_is_named_with_its_stack(tmp_path):
    with launched(BEATS.replace("HANGS", "-1"), tmp_path, ranks=1, hang_timeout=2.0) as it:
        eventually(lambda: any(last_beat(logs, 0) for logs in tmp_path.iterdir()))
        os.kill(it.rank(0), signal.SIGSTOP)
        assert it.wait() == 1
        assert it.left() == []
    assert "no progress for 2 s (hang_timeout): rank 0 in " in it.errors
    assert "in <module>" in it.errors, "its stack"


def test_ranks_that_make_progress_and_ranks_that_have_not_begun_are_left_alone(tmp_path):
    (tmp_path / "heartbeat_0").write_text(f"3 {time.monotonic() - 1} step 2")
    assert last_beat(tmp_path, 1) is None
    assert Watchdog(tmp_path, 60.0).hang_message({0: os.getpid(), 1: os.getpid()}) is None
    (tmp_path / "heartbeat_0").write_text("3 0.0 step 2")
    assert Watchdog(tmp_path, 0.0).hang_message({0: os.getpid()}) is None, "without a limit"


@pytest.mark.parametrize("seconds", [3600.0, -86_400.0], ids=["forwards", "backwards"])
def test_a_clock_that_is_set_ends_no_run_and_hides_no_hang(tmp_path, monkeypatch, seconds):
    monkeypatch.setenv(HEARTBEATS_VARIABLE, str(tmp_path))
    monkeypatch.setattr("pangu_sigma.ranks.watchdog._show_stacks", lambda pids: None)
    Heartbeat(0).beat("step 2")
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + seconds)
    pids = {0: os.getpid()}
    assert Watchdog(tmp_path, 1800.0).hang_message(pids) is None
    time.sleep(0.02)
    assert "rank 0 in step 2" in (Watchdog(tmp_path, 0.01).hang_message(pids) or "")
