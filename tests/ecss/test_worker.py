"""The protocol of the update behind the step as a small model, and every order in which its parts can run.

The parts: the graph (steps one after another: wait for a segment, read its rows, hand gradients out, top segment first, decide),
the worker (pieces of an update, begun before the decision or after it, done again or undone), the prefetcher (waits, then reads
rows that the coming step needs and the running one does not) and the saver (waits between steps, then reads all). A segment has
two rows, and steps use them in turn. A row is two pieces, each the number of updates that it has had; what the model must never
show is a reader that sees another number than that of the step, or two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from helpers.toy import toy_config

from pangu_sigma.config import ConfigError
from pangu_sigma.ecss.store import make_store
from pangu_sigma.ecss.worker import WorkerUpdate

SEGMENTS, PIECES = 2, 2
OUTCOMES = ("kept", "again", "undone")
"""What a decision makes of an update that was begun: it stands, is done again, or is undone, as the step changes nothing."""


class Job(NamedTuple):
    """The update of a row of a segment. begun: pieces done before the decision. done: pieces that are as they will stay."""

    row: int
    begun: int = 0
    done: int = 0
    outcome: str = ""


class State(NamedTuple):
    program: int
    """Number of the graph's next action."""
    step: int
    rows: tuple[tuple[float, ...], ...]
    """Updates that each piece of each row has had, two rows of each segment; a piece that is speculated has half a one."""
    jobs: tuple[Job | None, ...]
    right: tuple[int, ...]
    """Number of updates that each row should have had."""
    fetching: int
    """The prefetcher: 0 at rest, 1 asked, 2 it has waited."""
    fetched: int
    """Number of the row that it fetches of each segment."""


class Torn(AssertionError):
    """A reader saw what it should not."""


def program(outcomes: tuple[str, ...]) -> list[tuple[str, int | str]]:
    """The graph's actions, and those of the loop between its steps."""
    actions: list[tuple[str, int | str]] = []
    for outcome in outcomes:
        actions.append(("fetch", 0))
        for n in range(SEGMENTS):
            actions += [("await", n), ("read", n)]
        actions += [("hand out", n) for n in reversed(range(SEGMENTS))]
        actions.append(("decide", outcome))
    return [*actions, ("settle", 0), ("save", 0)]


def successors(state: State, actions: list[tuple[str, int | str]], broken: str) -> Iterator[State]:
    """Every state that one action of one part leads to. broken: the wait that is left out."""
    if state.program < len(actions):
        yield from graph(state, *actions[state.program], broken)
    for n, job in enumerate(state.jobs):
        if job is not None:
            yield from worker(state, n, job)
    if state.fetching == 1 and (broken == "prefetcher" or not any(decided(state))):
        yield state._replace(fetching=2)
    elif state.fetching == 2:
        for n in range(SEGMENTS):
            check(state, 2 * n + state.fetched)
        yield state._replace(fetching=0)


def decided(state: State) -> list[bool]:
    return [job is not None and job.outcome != "" for job in state.jobs]


def graph(state: State, action: str, of: int | str, broken: str) -> Iterator[State]:
    after = state._replace(program=state.program + 1)
    if action == "fetch":
        if state.fetching == 0:  # the loop waits for the last one
            yield after._replace(fetching=1, fetched=(state.step + 1) % 2)
    elif action == "await":
        assert isinstance(of, int)
        if state.jobs[of] is None or broken == "graph":
            yield after
    elif action in ("read", "save"):
        for row in range(2 * SEGMENTS) if action == "save" else [2 * int(of) + state.step % 2]:
            check(state, row)
        yield after
    elif action == "hand out":
        assert isinstance(of, int)
        assert state.jobs[of] is None, "an update was lost"
        yield after._replace(jobs=put(state.jobs, of, Job(2 * of + state.step % 2)))
    elif action == "decide":
        assert isinstance(of, str)
        jobs = tuple(job and job._replace(outcome=of) for job in state.jobs)
        right = tuple(count + (of != "undone" and row % 2 == state.step % 2) for row, count in enumerate(state.right))
        yield after._replace(jobs=jobs, right=right, step=state.step + 1)
    elif action == "settle" and (broken == "saver" or all(job is None for job in state.jobs)):
        yield after


def worker(state: State, n: int, job: Job) -> Iterator[State]:
    """A piece of a segment's update. Before the decision it cannot know whether that is right."""
    if not job.outcome:
        if job.begun < PIECES:
            row = state.rows[job.row]
            rows = put(state.rows, job.row, put(row, job.begun, row[job.begun] + 0.5))
            yield state._replace(rows=rows, jobs=put(state.jobs, n, job._replace(begun=job.begun + 1)))
        return
    was_begun = job.done < job.begun
    change = {"kept": 0.5, "again": 0.5, "undone": -0.5}[job.outcome] if was_begun else float(job.outcome != "undone")
    row = state.rows[job.row]
    rows = put(state.rows, job.row, put(row, job.done, row[job.done] + change))
    ended = job.done + 1 == PIECES
    yield state._replace(rows=rows, jobs=put(state.jobs, n, None if ended else job._replace(done=job.done + 1)))


def put(values: tuple, at: int, value: object) -> tuple:
    return (*values[:at], value, *values[at + 1 :])


def check(state: State, row: int) -> None:
    if set(state.rows[row]) != {float(state.right[row])}:
        raise Torn(f"row {row} has {state.rows[row]} updates, and should have {state.right[row]}")


def explore(outcomes: tuple[str, ...], broken: str = "") -> int:
    """Visit every state; returns their number. Raises AssertionError for a torn or lost row, and for a state that leads nowhere."""
    actions = program(outcomes)
    start = State(0, 0, ((0.0,) * PIECES,) * 2 * SEGMENTS, (None,) * SEGMENTS, (0,) * 2 * SEGMENTS, 0, 0)
    seen, todo = {start}, [start]
    while todo:
        state = todo.pop()
        reached = list(successors(state, actions, broken))
        if not reached:
            assert state.program == len(actions), f"deadlock: {state}"
            assert state.rows == tuple((float(count),) * PIECES for count in state.right)
        for other in reached:
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return len(seen)


@pytest.mark.parametrize(
    ("ecss", "said"),
    [
        ({"enabled": False, "update": "worker"}, "update=worker needs enabled=true"),
        ({"update": "step", "update_cores": 2}, "update_cores=2 needs update=worker or auto"),
    ],
)
def test_a_worker_that_nothing_would_use_is_refused(ecss: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        toy_config(ecss=ecss)


def test_cores_that_were_not_divided_are_told(caplog: pytest.LogCaptureFixture):
    config = toy_config(ecss={"update": "worker", "update_cores": 1})
    WorkerUpdate(config, make_store(config))
    assert "ecss.update_cores=1: only `train` divides the cores" in caplog.text


def test_no_order_loses_an_update_tears_a_row_or_stands_still():
    visited = [explore((a, b, c)) for a in OUTCOMES for b in OUTCOMES for c in OUTCOMES]
    assert len(visited) == 27 and min(visited) > 300


@pytest.mark.parametrize("broken", ["graph", "prefetcher", "saver"])
def test_a_wait_that_is_left_out_is_found(broken: str):
    with pytest.raises(Torn if broken != "graph" else AssertionError):
        explore(("kept", "again", "kept"), broken)
