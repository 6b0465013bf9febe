"""A run that has taken all of its steps says so; what is to be written to its folder is written."""

from __future__ import annotations

import shutil

import pytest

from experiments.tiny import SAVED_AT, STEPS
from pangu_sigma.checkpoint.run_folder import run_config
from pangu_sigma.cli import main
from pangu_sigma.training.backend import Backend
from pangu_sigma.training.log.metrics import read_metrics


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


def test_training_that_is_finished_says_so_before_a_network_is_built_and_changes_nothing(
    run, caplog, capsys, monkeypatch
):
    monkeypatch.setattr(Backend, "build", lambda *_: pytest.fail("a network was built"))
    before = {path: path.read_bytes() for path in [run / "metrics.jsonl", run / "configuration.json"]}
    assert main(["train", str(run)]) == 0
    assert f"nothing to do: {run} is at step {STEPS} of {STEPS}; raise train.steps to train on" in caplog.text
    assert f"step_{STEPS:08d}" in capsys.readouterr().out, "the summary is printed all the same"
    assert {path: path.read_bytes() for path in before} == before


def test_what_changed_and_what_a_crash_took_is_written(run, tiny_data, tmp_path):
    """Text that was moved, the report, and what a kill left of the last save."""
    moved, leftover = shutil.copytree(tiny_data, tmp_path / "moved"), run / "checkpoints" / ".unfinished-pruned-step_1"
    leftover.mkdir()
    shutil.rmtree(run / "report", ignore_errors=True)  # of a test that drew it
    assert main(["train", str(run), "--set", f"data.path={moved}"]) == 0
    assert run_config(run).data.path == str(moved)
    assert read_metrics(run)[-1]["changes"] == [["data.path", str(tiny_data), str(moved)]]
    assert (run / "report/report.html").exists() and not leftover.exists()


def test_a_damaged_checkpoint_of_a_later_step_and_its_log_are_moved_aside(run):
    with next((run / "checkpoints" / f"step_{STEPS:08d}").glob("dense.*")).open("r+b") as file:
        file.truncate(100)
    log = read_metrics(run)
    assert main(["train", str(run), "--set", f"train.steps={SAVED_AT}"]) == 0
    assert [checkpoint.name for checkpoint in (run / "checkpoints").iterdir()] == [f"step_{SAVED_AT:08d}"]
    assert read_metrics(run / "set_aside_1") == log
