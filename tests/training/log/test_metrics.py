"""metrics.jsonl tells the run as it was, also over crashes and resumes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.event_files import events
from helpers.losses import held_out
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import SessionLog

import pangu_sigma as ps
from pangu_sigma.sealed import sealed_line
from pangu_sigma.training.log import metrics
from pangu_sigma.training.log.metrics import (
    Metrics,
    MetricsLog,
    load_max_over_mean,
    metrics_columns,
    points,
    read_metrics,
)

DOMAINS = ["zh", "en"]


def load_at(step: int) -> np.ndarray:
    return np.array([[step, 0, 1, 1], [1, 1, 0, step]])


def record(log: MetricsLog, step: int, changes: Metrics | None = None, seconds: float = 2.0) -> None:
    domain = "zh" if step % 2 else "en"
    values = {"step": step, "loss": float(step), f"loss/{domain}": float(step), "learning_rate": 1e-3}
    values |= {
        "gradient_norm": 1.0,
        "loss_scale": 1024.0,
        "skipped": 0,
        "clipped": 0,
        "tokens": 64,
        "dropped": step % 4,
    }
    values |= {"load_max_over_mean": load_max_over_mean(load_at(step), [[0, 1, 2, 3]] * 2)}
    log.record(values | (changes or {}), load_at(step), f"{step:016x}", seconds)


def run(folder: Path, steps: range, resumed_step: int = 0) -> None:
    with MetricsLog(folder, DOMAINS, 20, 4, resumed_step) as log:
        for step in steps:
            record(log, step)
            if step % 8 == 0:
                log.evaluation(step, held_out(zh=2.0, en=3.0))
            if step % 6 == 0:
                log.flush()


def of_kind(folder: Path, kind: str) -> list[dict]:
    return [line for line in read_metrics(folder) if line["kind"] == kind]


def load_of(folder: Path) -> np.ndarray:
    return np.sum([line["tokens_NK"] for line in of_kind(folder, "load")], axis=0)


def test_a_line_holds_means_over_its_steps_and_over_those_that_had_the_domain(tmp_path: Path):
    run(tmp_path, range(1, 9))
    assert read_metrics(tmp_path)[0] == {"kind": "run", "step": 0, "domains": DOMAINS, "steps_total": 20}
    first, second, third = of_kind(tmp_path, "step")
    assert (first["step"], second["step"], third["step"]) == (4, 6, 8), "step 6 is where a checkpoint would be"
    assert first["loss"] == 2.5
    assert (second["loss/zh"], second["loss/en"]) == (5.0, 6.0)
    assert (first["tokens"], first["dropped"], second["dropped"]) == (4 * 64, 6, 3)
    assert first["tokens_per_second"] > 0
    assert first["samples"] != second["samples"]
    assert np.array_equal(load_of(tmp_path), sum(map(load_at, range(1, 9))))
    (evaluation,) = of_kind(tmp_path, "evaluation")
    expected = {"kind": "evaluation", "step": 8, "per_domain_loss": {"zh": 2.0, "en": 3.0}}
    assert evaluation == evaluation | expected
    assert evaluation["se"] == pytest.approx({"zh": 1.0, "en": 1.0})
    assert evaluation["per_sample"]["en"] == {"nats": [40.0, 20.0], "tokens": [10, 10], "bytes": [20, 20]}


def test_a_resumed_run_reads_like_an_uninterrupted_one(tmp_path: Path):
    """Also from a checkpoint between two lines, after step 6: the steps before it are in the log."""
    run(tmp_path / "whole", range(1, 17))
    run(tmp_path / "parts", range(1, 8))  # flushed, as before a checkpoint, at 6; then lost 7
    run(tmp_path / "parts", range(7, 15), resumed_step=6)
    run(tmp_path / "parts", range(13, 17), resumed_step=12)
    volatile = {"tokens_per_second": None}
    whole, parts = ([{**line, **volatile} for line in of_kind(tmp_path / name, "step")] for name in ("whole", "parts"))
    assert whole == parts
    assert of_kind(tmp_path / "whole", "evaluation") == of_kind(tmp_path / "parts", "evaluation")
    assert np.array_equal(load_of(tmp_path / "whole"), load_of(tmp_path / "parts"))
    assert len(of_kind(tmp_path / "parts", "run")) == 1
    run(tmp_path / "parts", range(1, 5))
    assert [line["step"] for line in of_kind(tmp_path / "parts", "step")] == [4], "a run from the start"


def test_a_line_cut_off_by_a_crash_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run(tmp_path, range(1, 5))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "st')
    assert [line["step"] for line in of_kind(tmp_path, "step")] == [4]
    assert "cut off" in caplog.text
    run(tmp_path, range(5, 9), resumed_step=4)
    assert [line["step"] for line in of_kind(tmp_path, "step")] == [4, 6, 8]
    assert "are lost" not in caplog.text


def test_a_run_that_goes_on_tells_a_line_with_a_changed_digit_and_leaves_it_out(tmp_path, caplog):
    run(tmp_path, range(1, 7))
    file = tmp_path / "metrics.jsonl"
    _, second, *_ = lines = file.read_text().splitlines(keepends=True)
    assert '"step": 4, "loss": 2.5' in second
    file.write_text("".join(lines).replace(second, second.replace('"loss": 2.5', '"loss": 3.5')))
    run(tmp_path, range(7, 9), resumed_step=6)
    assert caplog.messages == [f"{file}: line 2 was changed, or cut off by a crash; it is left out"]
    assert [line["step"] for line in of_kind(tmp_path, "step")] == [6, 8]
    assert len(caplog.messages) == 1, "and the log is whole again"


def test_lines_that_a_checkpoint_knows_and_the_log_does_not_are_said_to_be_lost(tmp_path: Path, caplog):
    run(tmp_path, range(1, 9))
    kept = [line for line in read_metrics(tmp_path) if line["step"] < 5]
    (tmp_path / "metrics.jsonl").write_text("".join(map(sealed_line, kept)))
    run(tmp_path, range(9, 13), resumed_step=8)
    assert "the lines of steps 5 to 8 are lost, and what they counted; the weights of step 8 are whole" in caplog.text
    assert [line["step"] for line in of_kind(tmp_path, "step")] == [4, 12]
    assert not [path.name for path in tmp_path.glob(".unfinished*")]


def test_skipped_steps_are_counted_and_do_not_spoil_the_means(tmp_path: Path):
    with MetricsLog(tmp_path, DOMAINS, 4, 2) as log:
        record(log, 1, {"gradient_norm": float("inf"), "skipped": 1, "loss": float("nan")})
        record(log, 2)
        record(log, 3, {"gradient_norm": float("nan"), "skipped": 1, "loss/zh": float("inf")})
        log.evaluation(3, held_out(zh=float("nan")))
    first, second = of_kind(tmp_path, "step")
    assert (first["skipped"], first["gradient_norm"], first["loss"]) == (1, 1.0, 2.0)
    assert not {"gradient_norm", "loss/zh"} & second.keys(), "a name without a value is absent"
    assert (second["left_out/gradient_norm"], second["left_out/loss/zh"], second["loss"]) == (1, 1, 3.0)
    (evaluation,) = of_kind(tmp_path, "evaluation")
    assert (evaluation["per_domain_loss"], evaluation["se"]) == ({"zh": None}, {"zh": None})
    for text in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are not JSON


def test_a_new_number_is_in_the_line_and_in_tensorboard_by_its_name_and_seconds_become_a_share(tmp_path):
    """Steps take two seconds; nothing but the record names the numbers."""
    with MetricsLog(tmp_path, DOMAINS, 3, 3) as log:
        for step in (1, 2, 3):
            record(log, step, {"new/one": float(step), "wait_seconds": 0.5, "epochs/zh": step / 8})
    (line,) = of_kind(tmp_path, "step")
    assert (line["new/one"], line["wait"], line["epochs/zh"]) == (2.0, 0.25, 0.375)
    assert not {name for name in line if name.endswith("seconds")}
    drawn = {
        event.summary.value[0].tag: event.summary.value[0].simple_value
        for event in events(tmp_path / "tensorboard")[2:]
    }
    assert drawn.keys() == line.keys() - {"kind", "step", "samples"}
    assert (drawn["new/one"], drawn["wait"]) == (2.0, 0.25)


def test_load_is_compared_over_experts_that_can_receive_tokens():
    load_NK, reachable_N = np.array([[0, 0, 6, 2], [3, 3, 0, 0]]), [[2, 3], [0, 1, 2, 3]]
    assert load_max_over_mean(load_NK, reachable_N) == pytest.approx((6 / 4 + 2) / 2)
    assert load_max_over_mean(np.array([[0] * 16, [1_000] + [0] * 15]), [range(16)] * 2) == 16.0, "15 are idle"
    assert load_max_over_mean(np.zeros((2, 4)), reachable_N) is None


def test_time_left_and_speed_are_those_of_the_steps_after_the_first_with_their_share_of_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first step, which compiles, takes 1,000 s; the others 2 s; an evaluation after the third 30 s."""
    clock = [1.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])
    shown = []
    with MetricsLog(tmp_path, DOMAINS, 103, 4) as log:
        for step, seconds in enumerate([1000.0, 2.0, 2.0, 2.0], 1):
            clock[0] += seconds
            record(log, step, seconds=seconds)
            shown.append(log._progress.postfix)
            if step == 3:
                clock[0] += 30.0
    assert [text.rsplit(", ", 1)[1] for text in shown] == ["? left", "03:22 left", "03:20 left", "19:48 left"]
    assert of_kind(tmp_path, "step")[0]["tokens_per_second"] == pytest.approx(3 * 64 / 6), "without the first step"


def test_the_progress_line_has_the_loss_of_counting_words_once_it_is_known(tmp_path: Path):
    with MetricsLog(tmp_path, DOMAINS, 4, 4) as log:
        record(log, 1, {"loss/zh": 5.0})
        assert log._progress.postfix.startswith("loss zh 5.000")
        log.evaluation(1, held_out(zh=5.0))
        record(log, 2, {"loss/zh": 4.5})
        assert log._progress.postfix.startswith("loss (of counting words) zh 4.500 (4.00)")
        record(log, 3, {"loss/zh": 4.4})
        log.evaluation(3, held_out(zh=float("nan")))
        log.evaluation(4, {})
    with MetricsLog(tmp_path, DOMAINS, 8, 4, resumed_step=3) as log:  # the line of step 4 is dropped
        record(log, 4, {"loss/zh": 4.2})
        assert log._progress.postfix.startswith("loss (of counting words) en 4.000 zh 4.200 (4.00)")


def test_the_log_says_how_many_steps_its_means_leave_out_and_the_progress_line_what_is_not_finite_now(tmp_path: Path):
    """A mean over what is left looks healthy; nothing else may."""
    nan = float("nan")
    dense, experts = "gradient_norm/dense", "gradient_norm/experts"
    ill = {"gradient_norm": nan, dense: nan, experts: 1.0, "skipped": 1, "loss": nan, "loss/zh": nan}
    with MetricsLog(tmp_path, DOMAINS, 4, 4) as log:
        record(log, 1, {dense: 0.6, experts: 0.8})
        record(log, 2, ill)
        assert "zh nan" in log._progress.postfix
        assert "1 steps skipped" in log._progress.postfix
        record(log, 3, ill)
        record(log, 4, {"loss/zh": 1.0})
        assert "nan" not in log._progress.postfix
        assert "2 steps skipped" in log._progress.postfix
    (line,) = of_kind(tmp_path, "step")
    assert (line["skipped"], line["left_out/loss"], line["left_out/loss/zh"]) == (2, 2, 2)
    assert "left_out/loss/en" not in line
    assert (line[dense], line[experts]) == (0.6, pytest.approx(2.8 / 3))


def test_spikes_and_what_is_not_finite_have_lines_of_their_own(tmp_path: Path):
    spike = {"step": 3, "domain": "zh", "loss": 9.0, "mean": 3.0, "limit": 4.0, "samples": "ab", "skipped": False}
    tensor = {"file": "dense", "name": "norm.gain", "count": 1, "first": [3], "experts": []}
    with MetricsLog(tmp_path, DOMAINS, 4, 4) as log:
        record(log, 3)
        log.write("spike", **spike)
        log.write("unhealthy", step=3, tensors=[tensor])
        log.write("rows", step=3, entries={0: (entry := {"met": 2, "collisions": None})}, scales={1: 0.5})
    assert of_kind(tmp_path, "rows") == [{"kind": "rows", "step": 3, "entries": {"0": entry}, "scales": {"1": 0.5}}]
    tags = {event.summary.value[0].tag for event in events(tmp_path / "tensorboard")[2:]}
    assert {"rows/entries/0/met", "rows/scales/1", "spike/loss", "loss/zh"} <= tags and "run/steps_total" not in tags
    assert of_kind(tmp_path, "spike") == [{"kind": "spike", **spike}]
    assert of_kind(tmp_path, "unhealthy") == [{"kind": "unhealthy", "step": 3, "tensors": [tensor]}]


def test_a_flipped_bit_of_any_byte_is_told_with_the_number_of_its_line(tmp_path, caplog):
    lines = [
        {"kind": "run", "step": 0, "domains": DOMAINS},
        {"kind": "spike", "step": 2, "domain": "en", "loss": 9.25},
        {"kind": "step", "step": 2, "loss": 3.25, "loss/zh": 3.5},
    ]
    file = tmp_path / "metrics.jsonl"
    whole = "".join(map(sealed_line, lines)).encode()
    file.write_bytes(whole)
    assert (read_metrics(tmp_path), caplog.messages) == (lines, [])
    assert [json.loads(text).items() >= line.items() for text, line in zip(whole.splitlines(), lines, strict=True)]
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        file.write_bytes(flipped)
        caplog.clear()
        actual, number = read_metrics(tmp_path), 1 + whole[:at].count(b"\n")
        assert actual in (
            [line for line in lines if line not in left_out] for left_out in (lines[number - 1 :][:n] for n in (1, 2))
        )
        assert f"{file}: line {number} was changed, or cut off by a crash; it is left out" in caplog.messages, at


def test_every_point_is_in_the_file_after_the_step_that_it_begins_at(tmp_path):
    with MetricsLog(tmp_path, DOMAINS, 20, 4, 4) as log:
        log.write("spike", step=6, loss=2.5)
        log.write("spike", step=7, loss=2.25)
    version, start, *drawn = events(tmp_path / "tensorboard")
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, SessionLog.START)
    values = [(event.step, event.summary.value[0].tag, event.summary.value[0].simple_value) for event in drawn]
    assert values == [(6, "spike/loss", 2.5), (7, "spike/loss", 2.25)]
    assert all(event.wall_time > 1e9 for event in drawn)


def test_curves_that_cannot_be_written_are_said_once_and_stop_nothing(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").mkdir()
    (tmp_path / "file/tensorboard").touch()
    run(tmp_path / "file", range(1, 5))
    assert "nothing more is written for TensorBoard" in caplog.text
    assert [line["step"] for line in of_kind(tmp_path / "file", "step")] == [4]
    with MetricsLog(tmp_path, DOMAINS, 20, 1) as log:

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(EventsWriter, "write_event", full)
        for step in (1, 2, 3):
            record(log, step)
    assert caplog.text.count("No space left on device; nothing more is written for TensorBoard") == 1
    assert [line["step"] for line in of_kind(tmp_path, "step")] == [1, 2, 3]


@pytest.fixture
def logged(tmp_path):
    lines = [
        {"kind": "run", "step": 0, "domains": ["a", "b"]},
        {"kind": "step", "step": 5, "loss": 3.5, "loss/a": 3, "samples": "x", "norm": None},
        {"kind": "step", "step": 10, "loss/a": 2, "loss/b": 1.5, "samples": "y", "norm": None},
        {"kind": "load", "step": 5, "tokens_NK": [[1, 2], [3, 4]]},
        {"kind": "load", "step": 10, "tokens_NK": [[5, 6], [7, 8]]},
        {"kind": "evaluation", "step": 5, "unigram": {"a": 6.5}, "per_sample": {"a": {"nats": [1, 2]}}},
        {"kind": "evaluation", "step": 10, "unigram": {"b": 6.0}, "per_sample": {"a": {"nats": [1]}}},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(map(sealed_line, lines)))
    return tmp_path


def test_each_line_of_the_kind_is_a_row(logged):
    actual = metrics_columns(logged, "step")
    assert list(actual) == ["step", "loss", "loss/a", "samples", "norm", "loss/b"]
    assert actual["step"].tolist() == [5, 10] and actual["step"].dtype.kind == "i"
    np.testing.assert_array_equal(actual["loss"], [3.5, np.nan])
    np.testing.assert_array_equal(actual["loss/b"], [np.nan, 1.5])
    assert np.isnan(actual["norm"]).all() and actual["samples"] == ["x", "y"]


def test_arrays_are_arrays_and_lists_of_several_lengths_stay_lists(logged):
    assert metrics_columns(logged, "load")["tokens_NK"].tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    evaluations = metrics_columns(logged, "evaluation")
    assert evaluations["per_sample/a/nats"] == [[1, 2], [1]]
    np.testing.assert_array_equal(evaluations["unigram/a"], [6.5, np.nan])
    steps = metrics_columns(logged, "step")
    assert [values.tolist() for values in points(steps, "loss/b")] == [[10], [1.5]], (
        "the finite values with their steps"
    )
    assert not any(points(steps, name)[1].size for name in ("norm", "samples", "none"))


def test_the_face_gives_a_table_that_prints_and_that_pandas_takes(logged):
    pandas = pytest.importorskip("pandas")
    table = ps.metrics(logged)
    assert str(table).splitlines()[0] == "2 rows; the columns, from the first value to the last:"
    assert [*str(table).splitlines()[1].split()] == ["step", "5", "…", "10"]
    frame = pandas.DataFrame(table)
    assert frame.shape == (2, 6) and frame["loss"].isna().tolist() == [False, True]
    assert "[2 × 2]" in str(ps.metrics(logged, "load"))


def test_what_is_not_there_is_named(logged, tmp_path):
    with pytest.raises(ps.UserError, match=r"kind='spike': .* has no such lines; it has run, step, load, evaluation"):
        ps.metrics(logged, "spike")
    with pytest.raises(ps.UserError, match=r"none/metrics\.jsonl: No such file or directory; name a run folder"):
        ps.metrics(tmp_path / "none")
