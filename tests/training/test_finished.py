"""A run that has taken all of its steps says so at once, and is not built again; what is to be written to its folder is written."""

from __future__ import annotations

import shutil

import pytest

from experiments.tiny import SAVED_AT, STEPS
from pangu_sigma.checkpoint.checkpoint import checkpoints
from pangu_sigma.checkpoint.run_folder import run_config
from pangu_sigma.cli import main
from pangu_sigma.training import loop
from pangu_sigma.training.finished import take_up_finished
from pangu_sigma.training.log.metrics import read_metrics
from pangu_sigma.training.start import DEFAULT_START, StartOptions


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


def test_training_that_is_finished_says_so_and_changes_nothing(run, caplog, capsys, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("the network is built"))
    caplog.set_level("INFO")
    before = {path: path.read_bytes() for path in [run / "metrics.jsonl", run / "configuration.json"]}
    assert main(["train", str(run)]) == 0
    assert f"nothing to do: {run} is at step {STEPS} of {STEPS}; raise train.steps to train on" in caplog.text
    assert "resuming" not in caplog.text
    assert f"step_{STEPS:08d}" in capsys.readouterr().out, "the summary is printed all the same"
    assert {path: path.read_bytes() for path in before} == before


def test_what_changed_and_what_a_crash_took_is_written(run, tiny_data, tmp_path):
    """Text that was moved, the report, and what a kill left of the last save."""
    moved, leftover = shutil.copytree(tiny_data, tmp_path / "moved"), run / "checkpoints" / ".unfinished-pruned-step_1"
    leftover.mkdir()
    (run / "report/report.html").unlink()
    assert take_up_finished(run, run_config(run, [("data.path", str(moved))]), DEFAULT_START)
    assert run_config(run).data.path == str(moved)
    assert read_metrics(run)[-1]["changes"] == [["data.path", str(tiny_data), str(moved)]]
    assert (run / "report/report.html").exists() and not leftover.exists()


def test_a_run_that_has_steps_to_do_or_a_damaged_checkpoint_is_trained(run):
    for config, asked in (
        (run_config(run, ["train.steps=31"]), DEFAULT_START),
        (run_config(run), StartOptions(start_over=True)),
        (run_config(run), StartOptions(from_step=SAVED_AT)),
    ):
        assert not take_up_finished(run, config, asked)
    (checkpoints(run / "checkpoints")[0] / "state.json").write_text("{}")
    assert not take_up_finished(run, run_config(run), DEFAULT_START)
    assert not take_up_finished(run.with_name("new"), run_config(run), DEFAULT_START)
