from __future__ import annotations

import json

import pytest

from experiments.tiny import STEPS, tiny_config
from pangu_sigma.checkpoint.run_folder import run_config
from pangu_sigma.data.order import Cursor
from pangu_sigma.training.progress import Progress, resume
from pangu_sigma.training.start import start_run


def test_a_step_counts_and_an_applied_one_is_an_update():
    progress = Progress(7, 5, Cursor([1, 2]))
    progress.advance(True, Cursor([3, 2]))
    assert progress == Progress(8, 6, Cursor([3, 2]))
    progress.advance(False, Cursor([3, 4]))
    assert progress == Progress(9, 6, Cursor([3, 4]))


def test_it_comes_back_from_the_state_of_a_checkpoint():
    progress = Progress(7, 5, Cursor([1, 2]))
    assert Progress.from_state(json.loads(json.dumps(progress.state()))) == progress


def test_a_run_without_a_checkpoint_begins_at_the_start(tiny_data, tmp_path):
    run, start = start_run(tmp_path / "run", tiny_config(tiny_data)), Cursor([0, 0, 0])
    assert run.newest is None
    assert resume(run, start) == (Progress(0, 0, start), None)


@pytest.mark.usefixtures("graph_mode")
def test_a_run_goes_on_from_its_newest_checkpoint(tiny_data, tiny_run, caplog):
    run = start_run(tiny_run, tiny_config(tiny_data))
    with caplog.at_level("INFO"):
        progress, checkpoint = resume(run, Cursor([0, 0, 0]))
    assert checkpoint is not None
    assert checkpoint.path == run.checkpoints / f"step_{STEPS:08d}"
    assert (progress.step, progress.updates, checkpoint.step) == (STEPS, STEPS, STEPS)
    assert sum(progress.cursor.taken) == STEPS * 4
    assert f"resuming {tiny_run} after step {STEPS}" in caplog.text


@pytest.mark.usefixtures("graph_mode")
def test_a_run_that_begins_with_weights_of_another_is_not_said_to_resume(drawn_segmented_run, caplog):
    caplog.set_level("INFO")
    progress, checkpoint = resume(start_run(drawn_segmented_run, run_config(drawn_segmented_run)), Cursor([0, 0, 0]))
    assert checkpoint is not None and progress.step == checkpoint.step == 0
    assert "resuming" not in caplog.text
