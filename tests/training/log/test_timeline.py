"""A timeline has what the loop did, on the clock of MindSpore's profiler, without the step that compiles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.edited import stopped_at
from mindspore import Tensor, nn, ops

from experiments.tiny import SAVED_AT, tiny_config
from pangu_sigma.training.log.metrics import read_metrics
from pangu_sigma.training.log.timeline import STEPS as SEEN
from pangu_sigma.training.log.timeline import Timeline, profiler_activities
from pangu_sigma.training.loop import train

pytestmark = pytest.mark.usefixtures("graph_mode")


class Work(nn.Cell):
    def construct(self, x):
        return ops.ReduceSum()(ops.exp(x))


def events_of(run: Path) -> list[dict]:
    return [event for event in json.loads((run / "profile/trace.json").read_text()) if event["ph"] == "X"]


def operators_of(run: Path) -> list[dict]:
    """Events in the file of MindSpore's profiler, whose times are texts."""
    (file,) = (run / "profile").glob("*/ASCEND_PROFILER_OUTPUT/trace_view.json")
    return [event for event in json.loads(file.read_text()) if event["ph"] == "X"]


def test_operators_lie_inside_the_span_that_ran_them(tmp_path):
    work, x = Work(), Tensor(np.ones((300, 300), np.float32))
    work(x)
    with Timeline(tmp_path, 7) as timeline:
        for step in range(8, 10 + SEEN):
            with timeline.span("step"):
                work(x).asnumpy()
            with timeline.span("metrics"):
                pass
            timeline.step_done(step)
    events = events_of(tmp_path)
    assert [event["name"] for event in events] == ["step", "metrics"] * SEEN, (
        "neither the first step nor those after the last"
    )
    steps = [event for event in events if event["name"] == "step"]
    operators = [event for event in operators_of(tmp_path) if "ReduceSum" in event["name"]]
    assert len(operators) == SEEN
    for step, operator in zip(steps, sorted(operators, key=lambda event: float(event["ts"])), strict=True):
        begin = float(operator["ts"])
        assert step["ts"] <= begin <= begin + float(operator["dur"]) <= step["ts"] + step["dur"] + 1


def test_a_run_that_ends_early_leaves_what_was_seen_and_one_of_a_step_nothing(tmp_path):
    for name, steps in (("early", 3), ("one", 1)):
        work, x = Work(), Tensor(np.ones(3, np.float32))
        with Timeline(tmp_path / name, 0) as timeline:
            for step in range(1, steps + 1):
                with timeline.span("step"):
                    work(x).asnumpy()
                timeline.step_done(step)
    assert [event["name"] for event in events_of(tmp_path / "early")] == ["step", "step"]
    assert not (tmp_path / "one/profile/trace.json").exists()


def test_without_a_step_or_without_being_asked_for_nothing_is_seen(tmp_path, caplog):
    with Timeline() as timeline, timeline.span("step"):
        timeline.step_done(1)
    assert caplog.messages == []
    with Timeline(tmp_path, 7):
        pass
    assert caplog.messages == ["no timeline: this run took no step after its first, which compiles"]


def test_on_ascend_the_npu_is_watched_too():
    assert [activity.value for activity in profiler_activities("CPU")] == ["CPU"]
    assert [activity.value for activity in profiler_activities("Ascend")] == ["CPU", "NPU"]


@pytest.mark.slow
def test_a_run_with_a_timeline_logs_what_one_without_logs(tiny_data, tiny_run, tmp_path):
    """The same losses to the last digit, and a file that names the parts of the loop and the project's own operators."""
    copy = stopped_at(tiny_run, SAVED_AT, tmp_path / "run")
    train(tiny_config(tiny_data), copy, profile=True)
    losses = [[line["loss"] for line in read_metrics(run) if line["kind"] == "step"] for run in (tiny_run, copy)]
    assert losses[0] == losses[1]
    names = [event["name"] for event in events_of(copy)]
    assert [names.count(name) for name in ("feed", "step", "metrics", "save")] == [SEEN, SEEN, SEEN, 0]
    assert any("AdamRows" in name or "Custom" in name for name in (each["name"] for each in operators_of(copy)))
