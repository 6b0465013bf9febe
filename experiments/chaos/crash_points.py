"""A run killed at every file that it opens, renames or removes (the injector of ckpt-chaos), and started again.

Modes and verdicts are ckpt-chaos's. `before`: killed before the event; `torn`: the file is cut in half first; `term`: SIGTERM, and
SIGKILL five seconds later; `unsynced`: killed, and what was not flushed to the disk is lost. HARD_FAIL: the run cannot go on;
LOST_WORK: it went on from an older checkpoint than the newest whole one; SILENT_DIVERGENCE: other weights at the end.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ckpt_chaos.byo import BOOT, PKG_PARENT
from ckpt_chaos.runner import _events

from experiments.chaos.cases import (
    CASE_SECONDS,
    TRAIN,
    Case,
    assert_no_traceback,
    assert_same,
    command,
    configuration,
    data,
    end_of,
    once,
)
from experiments.chaos.forked import Forked
from experiments.chaos.rank_processes import RankProcesses
from pangu_sigma.checkpoint.checkpoint import CheckpointError, load_checkpoint
from pangu_sigma.cli import main
from pangu_sigma.training.log.metrics import FILE, read_metrics

_KILLED_GRACE = 3.0
"""Seconds that the other ranks get after one was killed; then they are killed too, as a launcher does it."""
_SAMPLED = 20
"""Crash points of the modes `term` and `unsynced`; `before` and `torn` have all of them."""


def cases(ranks: int, work: Path, full: bool) -> Sequence[Case]:
    """The crash points of a run of some ranks; one of the ranks is killed, each in turn."""
    reference = once(work, f"reference_{ranks}", partial(_reference, work, ranks))
    found = []
    for crashes in range(ranks):
        events = _events(reference / f"events_{crashes}.rank0")
        everything = [number for number, *_ in events]
        points = [(number, "before") for number in everything]
        points += [(number, "torn") for number, _, _, tornable in events if tornable]
        points += [(number, mode) for mode in ("term", "unsynced") for number in _spread(everything, _SAMPLED)]
        if not full:
            points = _spread(points, 16 // ranks**2)
        log = [(number, "torn") for number, _, name, _ in events if name == FILE]
        found += [
            Case(
                f"rank{crashes}_{mode}_{number}",
                partial(_check, reference, ranks, crashes, number, mode, (number, mode) in log),
            )
            for number, mode in points
        ]
    return found


def _spread(items: list, count: int) -> list:
    """`count` of the items, evenly spread."""
    return items if len(items) <= count else [items[i * len(items) // count] for i in range(count)]


def _reference(work: Path, ranks: int, folder: Path) -> None:
    parallel = {"expert": ranks} if ranks > 1 else {}
    one_layer = {"dense_layers": 0, "rre_layers": 1}  # others add no file of another kind, and take long to compile
    configuration(folder, data(work), parallel=parallel, model=one_layer, train={"keep_checkpoints": 2})
    injected = {rank: _injector(folder / "run", folder / f"events_{rank}") for rank in range(ranks)}
    status, said = _train(folder / "config.yaml", folder / "run", ranks, folder / "logs", injected, forked=False)
    assert status == 0, said


def _injector(run: Path, log: Path, crash_at: int | None = None, mode: str = "before") -> dict[str, str]:
    """Variables that make ckpt-chaos watch a process that writes in `run`."""
    found = {
        "PYTHONPATH": os.pathsep.join([str(BOOT), str(PKG_PARENT), os.environ.get("PYTHONPATH", "")]),
        "CKPT_CHAOS_WATCH": str(run),
        "CKPT_CHAOS_LOG": str(log),
        "CKPT_CHAOS_TORN_PYTHON": "1",
        "CKPT_CHAOS_GRACE_S": "5",
    }
    return found | ({"CKPT_CHAOS_CRASH_AT": str(crash_at), "CKPT_CHAOS_MODE": mode} if crash_at else {})


def _train(
    config: Path, run: Path, ranks: int, logs: Path, variables: dict[int, dict[str, str]], forked: bool = True
) -> tuple[int, str]:
    """Train to the end or to a kill. Returns an exit status, one that is not 0 if there is one, and what was said.

    variables: of each rank. forked: False to start as users do.
    """
    arguments = ["train", str(config), "--output", str(run)]
    if ranks == 1 and forked:
        return _in_a_fork(arguments, variables.get(0, {}), logs)
    if ranks == 1:
        return command([*TRAIN, *arguments[1:]], variables.get(0))
    with RankProcesses(ranks, arguments, logs, variables, forked=forked) as processes:
        started, failed = time.monotonic(), 0.0
        while any(worker.poll() is None for worker in processes.workers):
            if not failed and any(worker.poll() for worker in processes.workers):
                failed = time.monotonic()
            if failed and time.monotonic() - failed > _KILLED_GRACE:
                break
            assert time.monotonic() - started < CASE_SECONDS, f"HANG: {processes.said()[-500:]}"
            time.sleep(0.1)
        statuses = [worker.poll() for worker in processes.workers]
        return next((status for status in statuses if status != 0), 0) or 0, processes.said()


def _in_a_fork(arguments: list[str], variables: dict[str, str], logs: Path) -> tuple[int, str]:
    """`cases.command` in a fork of this process."""
    logs.mkdir(parents=True)
    log = logs / "0.log"
    process = Forked(partial(main, arguments), variables, log)
    try:
        status = process.wait(CASE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"HANG: {arguments} did not end within {CASE_SECONDS:g} s") from None
    return status, log.read_text(encoding="utf-8", errors="replace")


def _check(reference: Path, ranks: int, crashes: int, number: int, mode: str, log_is_torn: bool, folder: Path) -> str:
    config, run = reference / "config.yaml", folder / "run"
    _train(config, run, ranks, folder / "first", {crashes: _injector(run, folder / "events", number, mode)})
    newest = _newest_whole(run / "checkpoints")
    status, said = _train(config, run, ranks, folder / "second", {})
    assert status == 0, f"HARD_FAIL: status {status}: {said[-600:]}"
    assert_no_traceback(said)
    resumed = re.search(r"(?:resuming \S+ after|\S+ is at) step (\d+)", said)
    assert (int(resumed[1]) if resumed else 0) == newest, (
        f"LOST_WORK: {newest} was whole, it went on from {resumed and resumed[1]}"
    )
    assert_same(end_of(run), end_of(reference / "run"))
    _assert_log(run, reference / "run", mode == "term", log_is_torn and "are lost, and what they counted" in said)
    left = [str(path.relative_to(run)) for path in run.rglob(".unfinished*")]
    assert not left, f"left behind: {left}"
    return ""


def _newest_whole(checkpoints: Path) -> int:
    """The newest step whose checkpoint is whole; 0 if there is none."""
    for folder in sorted(checkpoints.glob("step_*"), reverse=True):
        try:
            return load_checkpoint(folder).step
        except CheckpointError:
            continue
    return 0


def _assert_log(run: Path, other: Path, stopped: bool, lost: bool) -> None:
    """Every step is logged once, with the samples of the undisturbed run.

    A stop writes a line of its own for the steps since the last one. lost: the log itself was torn, and this was said.
    """
    logged, expected = (
        [(line["step"], line["samples"]) for line in read_metrics(path) if line["kind"] == "step"]
        for path in (run, other)
    )
    if stopped or lost:
        steps = [step for step, _ in logged]
        assert steps == sorted(set(steps)), f"the log has the steps {steps}"
        assert lost or {step for step, _ in expected} <= set(steps), f"the log has the steps {steps}"
    else:
        assert logged == expected, f"the log has {logged}"
