"""Ranks that are killed, asked to stop, or stand still, under the launcher."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from experiments.chaos.cases import Case, assert_same, configuration, data, end_of, once
from experiments.chaos.launched import Launched, eventually, free_port
from experiments.chaos.runs import newest
from pangu_sigma.training.log.metrics import read_metrics

_LAUNCH = [sys.executable, "-m", "pangu_sigma", "launch"]
_STEPS, _SAVED = 160, 20
_HANG = 20
"""Seconds without progress that are a hang: more than the first step takes, which compiles, and less than the 30 s after which
MindSpore's scheduler gives a paused rank up."""


def killed(work: Path, full: bool) -> Sequence[Case]:
    """SIGKILL to a rank at a random moment; in every third case while a checkpoint is being written."""
    return [Case(f"killed_{n}", partial(_killed, work, n)) for n in range(20 if full else 3)]


def stopped(work: Path, full: bool) -> Sequence[Case]:
    """SIGTERM or SIGINT to the launcher, or SIGTERM to a rank, at a random step."""
    return [Case(f"stopped_{n}", partial(_stopped, work, n)) for n in range(20 if full else 3)]


def hung(work: Path, full: bool) -> Sequence[Case]:
    """SIGSTOP to a rank."""
    return [Case(f"hung_{n}", partial(_hung, work, n)) for n in range(5 if full else 1)]


def _reference(work: Path, folder: Path) -> None:
    train = {"steps": _STEPS, "checkpoint_interval": _SAVED, "keep_checkpoints": 3}
    configuration(folder, data(work), train=train, parallel={"data": 2})
    with _launched(folder, folder / "run") as it:
        assert it.wait(300) == 0, it.errors


def _launched(reference: Path, run: Path, *options: str) -> Launched:
    arguments = [str(reference / "config.yaml"), "--output", str(run), "--master-port", str(free_port()), *options]
    return Launched([*_LAUNCH, *arguments], run / "logs")


def _saved_once(run: Path) -> None:
    eventually(lambda: list((run / "checkpoints").glob("step_*")), 120)


def _killed(work: Path, number: int, folder: Path) -> str:
    reference = once(work, "launches", partial(_reference, work))
    rng, run = random.Random(number), folder / "run"
    with _launched(reference, run, "--max-restarts", "1") as it:
        _saved_once(run)
        rank, pids = rng.randrange(2), [it.pid(0), it.pid(1)]
        if number % 3 == 2:
            eventually(lambda: list((run / "checkpoints").glob(".unfinished*")), 120)
        else:
            time.sleep(rng.random() * 1.5)
        os.kill(pids[rank], signal.SIGKILL)
        at = time.monotonic()
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 30)
        seconds = time.monotonic() - at
        assert seconds < 8, f"the other rank was stopped after {seconds:.1f} s"
        assert it.wait(300) == 0, it.errors[-600:]
        assert it.left() == [], "processes are left"
    assert f"rank {rank} was killed by SIGKILL" in it.errors, it.errors[-600:]
    assert_same(end_of(run), end_of(reference / "run"))
    samples = [(line["step"], line["samples"]) for line in read_metrics(run) if line["kind"] == "step"]
    expected = [(line["step"], line["samples"]) for line in read_metrics(reference / "run") if line["kind"] == "step"]
    assert samples == expected, "the log is not that of an undisturbed run"
    return ""


def _stopped(work: Path, number: int, folder: Path) -> str:
    reference = once(work, "launches", partial(_reference, work))
    rng, run = random.Random(number), folder / "run"
    with _launched(reference, run) as it:
        _saved_once(run)
        time.sleep(rng.random())
        match number % 3:
            case 0:
                it.process.send_signal(signal.SIGTERM)
            case 1:
                it.process.send_signal(signal.SIGINT)
            case 2:
                os.kill(it.pid(rng.randrange(2)), signal.SIGTERM)
        at = time.monotonic()
        status = it.wait(60)
        seconds = time.monotonic() - at
        assert status in (0, 143), f"status {status}: {it.errors[-600:]}"
        assert seconds < 12, f"it ended after {seconds:.1f} s"
        assert it.left() == [], "processes are left"
    step = newest(run).step
    last = max(line["step"] for line in read_metrics(run) if line["kind"] == "step")
    assert step == last, f"the last step was {last}, saved is {step}"
    with _launched(reference, run) as it:
        assert it.wait(300) == 0, it.errors[-600:]
    assert_same(end_of(run), end_of(reference / "run"))
    return ""


def _hung(work: Path, number: int, folder: Path) -> str:
    reference = once(work, "launches", partial(_reference, work))
    run, rank = folder / "run", number % 2
    with _launched(reference, run, "--hang-timeout", str(_HANG), "--max-restarts", "1") as it:
        _saved_once(run)
        os.kill(it.pid(rank), signal.SIGSTOP)
        at = time.monotonic()
        eventually(lambda: len(list((run / "logs").glob("*/worker_0.log"))) == 2, 120)
        seconds = time.monotonic() - at
        assert it.wait(300) == 0, it.errors[-600:]
        assert it.left() == [], "processes are left"
    assert seconds < _HANG + 12, f"noticed and started again after {seconds:.1f} s"
    assert "no progress for" in it.errors and f"rank {rank} in " in it.errors, it.errors[-600:]
    assert "loop.py" in it.errors, "no stack of the rank was shown"
    assert_same(end_of(run), end_of(reference / "run"))
    return ""
