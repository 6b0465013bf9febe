"""metrics.jsonl tells the run as it was, also over crashes and resumes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pangu_sigma.train.metrics import MetricsLog, StepMetrics, load_max_over_mean, read_metrics

DOMAINS = ["zh", "en"]


def step_metrics(step: int, **changes) -> StepMetrics:
    load_NK = np.array([[step, 0, 1, 1], [1, 1, 0, step]])
    values = {
        "step": step,
        "loss": float(step),
        "per_domain_loss": {"zh": float(step)} if step % 2 else {"en": float(step)},
        "learning_rate": 1e-3,
        "gradient_norm": 1.0,
        "loss_scale": 1024.0,
        "skipped": False,
        "tokens": 64,
        "load_NK": load_NK,
    }
    return StepMetrics(**{**values, **changes})


def run(folder: Path, steps: range, resumed_step: int = 0) -> None:
    with MetricsLog(folder, DOMAINS, 20, 4, resumed_step) as log:
        for step in steps:
            log.record(step_metrics(step))
            if step % 8 == 0:
                with log.paused():
                    log.evaluation(step, {"zh": 2.0, "en": 3.0})
            if step % 6 == 0:
                log.flush()


def of_kind(folder: Path, kind: str) -> list[dict]:
    return [line for line in read_metrics(folder) if line["kind"] == kind]


def load_of(folder: Path) -> np.ndarray:
    return np.sum([line["tokens_NK"] for line in of_kind(folder, "load")], axis=0)


def test_a_line_holds_means_over_its_steps_and_over_those_that_had_the_domain(tmp_path: Path):
    run(tmp_path, range(1, 9))
    first, second = of_kind(tmp_path, "step")
    assert (first["step"], second["step"]) == (4, 8)
    assert first["loss"] == 2.5
    assert second["per_domain_loss"] == {"zh": 6.0, "en": 7.0}
    assert first["tokens"] == 4 * 64
    assert first["tokens_per_second"] > 0
    assert of_kind(tmp_path, "evaluation") == [
        {"kind": "evaluation", "step": 8, "per_domain_loss": {"zh": 2.0, "en": 3.0}}
    ]


def test_the_run_line_and_tensorboard_files_are_there(tmp_path: Path):
    run(tmp_path, range(1, 5))
    assert read_metrics(tmp_path)[0] == {"kind": "run", "step": 0, "domains": DOMAINS, "steps_total": 20}
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_steps_after_the_last_full_interval_are_logged_at_the_end(tmp_path: Path):
    run(tmp_path, range(1, 7))
    assert [line["step"] for line in of_kind(tmp_path, "step")] == [4, 6]


def test_expert_load_adds_up_over_the_run(tmp_path: Path):
    run(tmp_path, range(1, 15))
    assert np.array_equal(load_of(tmp_path), sum(step_metrics(s).load_NK for s in range(1, 15)))


def test_a_resumed_run_reads_like_an_uninterrupted_one(tmp_path: Path):
    run(tmp_path / "whole", range(1, 17))
    run(tmp_path / "parts", range(1, 15))  # flushed, as before a checkpoint, at 12; then lost 13 and 14
    run(tmp_path / "parts", range(13, 17), resumed_step=12)
    volatile = {"tokens_per_second": None}
    whole, parts = ([{**line, **volatile} for line in of_kind(tmp_path / name, "step")] for name in ("whole", "parts"))
    assert whole == parts
    assert of_kind(tmp_path / "whole", "evaluation") == of_kind(tmp_path / "parts", "evaluation")
    assert np.array_equal(load_of(tmp_path / "whole"), load_of(tmp_path / "parts"))
    assert len(of_kind(tmp_path / "parts", "run")) == 1


def test_a_run_from_the_start_replaces_the_old_lines(tmp_path: Path):
    run(tmp_path, range(1, 9))
    run(tmp_path, range(1, 5))
    assert [line["step"] for line in of_kind(tmp_path, "step")] == [4]


def test_a_line_cut_off_by_a_crash_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run(tmp_path, range(1, 5))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "st')
    assert [line["step"] for line in of_kind(tmp_path, "step")] == [4]
    assert "cut off" in caplog.text
    run(tmp_path, range(5, 9), resumed_step=4)
    assert [line["step"] for line in of_kind(tmp_path, "step")] == [4, 8]


def test_skipped_steps_are_counted_and_do_not_spoil_the_means(tmp_path: Path):
    with MetricsLog(tmp_path, DOMAINS, 4, 2) as log:
        log.record(step_metrics(1, gradient_norm=float("inf"), skipped=True, loss=float("nan")))
        log.record(step_metrics(2))
        log.record(step_metrics(3, gradient_norm=float("nan"), skipped=True, per_domain_loss={"zh": float("inf")}))
        log.evaluation(3, {"zh": float("nan")})
    first, second = of_kind(tmp_path, "step")
    assert (first["skipped"], first["gradient_norm"], first["loss"]) == (1, 1.0, 2.0)
    assert (second["gradient_norm"], second["per_domain_loss"]) == (None, {"zh": None})
    for text in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are not JSON


def test_a_model_without_routed_layers_has_no_load(tmp_path: Path):
    with MetricsLog(tmp_path, DOMAINS, 1, 1) as log:
        log.record(step_metrics(1, load_NK=np.zeros((0, 4), np.int32)))
    assert of_kind(tmp_path, "step")[0]["load_max_over_mean"] is None


def test_progress_shows_losses_speed_load_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture):
    run(tmp_path, range(1, 9))
    shown = capsys.readouterr().err
    for part in ("8/20", "zh ", "en ", "tokens/s", "load max/mean", "left"):
        assert part in shown


def test_load_is_compared_over_experts_that_received_tokens():
    assert load_max_over_mean(np.array([[0, 0, 6, 2], [3, 3, 0, 0]])) == pytest.approx((6 / 4 + 1) / 2)
    assert load_max_over_mean(np.zeros((2, 4))) is None
