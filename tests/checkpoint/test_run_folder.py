from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.failing_files import killed_after
from helpers.saved import save_checkpoint

from experiments.tiny import tiny_config
from pangu_sigma.checkpoint.checkpoint import CheckpointError, newest_checkpoint
from pangu_sigma.checkpoint.parts import Part, SavedArray
from pangu_sigma.checkpoint.run_folder import go_back, one_writer, run_config, set_aside, start_over
from pangu_sigma.config import ConfigError
from pangu_sigma.sealed import sealed_line
from pangu_sigma.stored.open import open_model
from pangu_sigma.training.start import StartOptions, check_start, start_run
from pangu_sigma.writable import NotWritable


def test_the_identity_follows_vocabulary_and_tables_and_carries_the_configuration(tiny_data, tmp_path):
    one = start_run(tmp_path / "a", tiny_config(tiny_data)).identity
    same = start_run(tmp_path / "b", tiny_config(tiny_data, train={"steps": 7})).identity
    other = start_run(tmp_path / "c", tiny_config(tiny_data, routing={"seed": 1})).identity
    assert (one.vocabulary_hash, one.routing_hash) == (same.vocabulary_hash, same.routing_hash)
    assert one.routing_hash != other.routing_hash
    assert same.config["train"]["steps"] == 7


def test_the_run_is_the_truth_about_itself(tiny_data, tmp_path):
    run = start_run(tmp_path / "run", tiny_config(tiny_data)).path
    assert run_config(run) == tiny_config(tiny_data)
    assert run_config(run, ["train.steps=7"]) == tiny_config(tiny_data, train={"steps": 7})
    with pytest.raises(ConfigError, match=r"train\.stepz: unknown key"):
        run_config(run, ["train.stepz=7"])
    with pytest.raises(ConfigError, match=r"no configuration\.json; pass a configuration"):
        run_config(run / "none")


@pytest.mark.parametrize("path", ["/proc/run", "{}/file", "{}/file/run"])
def test_a_folder_that_cannot_be_locked_is_an_error_that_names_it(tmp_path, path):
    (tmp_path / "file").write_text("x")
    folder = Path(path.format(tmp_path))
    with pytest.raises(OSError, match=r"'(/proc/run|.*/file.*)'"), one_writer(folder):
        pytest.fail("it was locked")


@pytest.mark.parametrize("name", ["checkpoints", "report", "tensorboard", "logs", "profile", "metrics.jsonl"])
def test_what_a_run_writes_is_no_link_and_the_run_itself_may_be(tmp_path, name):
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to("real")
    with one_writer(tmp_path / "run"):
        pass
    link = tmp_path / "run" / name
    link.symlink_to(tmp_path)
    with pytest.raises(NotWritable, match=rf"^{link} is a link"), one_writer(tmp_path / "run"):
        pytest.fail("it was locked")


OTHER = {"seed": 5}
"""Routing tables that the run's checkpoints do not go with."""


@pytest.fixture
def run(tiny_data, tmp_path) -> Path:
    """A run with a checkpoint, metrics, a report and logs."""
    path = tmp_path / "run"
    opened = start_run(path, tiny_config(tiny_data))
    state = {"step": 3, "updates": 3, "cursor": {"taken": [3, 0, 0]}}
    save_checkpoint(path / "checkpoints", 3, {}, state, opened.identity, 2)
    write_metrics(path, 3)
    for name in ("tensorboard", "report", "logs"):
        (path / name).mkdir()
        (path / name / "file").write_text(name)
    return path


def write_metrics(run: Path, steps: int) -> None:
    lines = [{"kind": "run", "step": 0}, *({"kind": "step", "step": n + 1} for n in range(steps))]
    (run / "metrics.jsonl").write_text("".join(map(sealed_line, lines)))


def test_starting_over_deletes_nothing_and_what_is_set_aside_is_a_run(tiny_data, run, caplog):
    before = {file.relative_to(run): file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with caplog.at_level("INFO"):
        created = start_run(run, tiny_config(tiny_data, routing=OTHER), options=StartOptions(start_over=True))
    assert created.newest is None
    assert f"set aside checkpoints, metrics.jsonl, tensorboard, report of {run} in {run / 'set_aside_1'}" in caplog.text
    aside = open_model(run / "set_aside_1", "run")
    assert aside.config == tiny_config(tiny_data)
    assert aside.step == 3
    kept = {file.relative_to(aside.path): file.read_bytes() for file in aside.path.rglob("*") if file.is_file()}
    assert before.items() == kept.items() | {(Path("logs/file"), (run / "logs/file").read_bytes())}
    assert not (run / "metrics.jsonl").exists()


def test_starting_over_twice_takes_the_next_number_and_an_empty_run_has_nothing_to_set_aside(tiny_data, run):
    start_over(run)
    assert set_aside(run) is None
    write_metrics(run, 1)
    start_over(run)
    assert sorted(path.name for path in run.glob("set_aside_*")) == ["set_aside_1", "set_aside_2"]
    assert (run / "set_aside_2" / "metrics.jsonl").exists()


def test_what_an_interrupted_save_left_is_not_set_aside(run):
    (run / "checkpoints" / ".unfinished-step_00000006").mkdir()
    with one_writer(run):
        set_aside(run)
    assert sorted(path.name for path in (run / "set_aside_1/checkpoints").iterdir()) == ["step_00000003"]


def test_going_back_sets_the_later_checkpoints_aside_by_name(tiny_data, run, caplog):
    opened = open_model(run, "run")
    for step in (6, 9):
        state = {"step": step, "updates": step, "cursor": {"taken": [step, 0, 0]}}
        save_checkpoint(run / "checkpoints", step, {}, state, opened.identity, 5)
    write_metrics(run, 9)
    with pytest.raises(ConfigError, match=r"from_step 5: .*run has no such checkpoint; .* are of steps 3, 6, 9$"):
        go_back(run, 5)
    config = tiny_config(tiny_data)
    assert check_start(run, config, StartOptions(from_step=3)) == []
    with caplog.at_level("INFO"):
        assert start_run(run, config, options=StartOptions(from_step=3)).newest.step == 3
    assert f"set aside step_00000009, step_00000006 of {run} in {run / 'set_aside_1'}" in caplog.text
    assert (
        newest_checkpoint(run / "set_aside_1" / "checkpoints").step == open_model(run / "set_aside_1", "run").step == 9
    )
    assert (run / "set_aside_1" / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    start_run(run, config, options=StartOptions(from_step=3))
    assert not (run / "set_aside_2").exists(), "nothing is newer"
    with pytest.raises(ConfigError, match="start_over and from_step are two ways to begin; choose one"):
        check_start(run, config, StartOptions(start_over=True, from_step=3))


def test_a_step_to_go_back_to_that_is_damaged_is_refused_and_nothing_is_set_aside(run):
    files = {"dense": {"w": SavedArray(Part.everything((2,)), np.zeros(2, np.float32))}}
    for step in (3, 6):
        save_checkpoint(run / "checkpoints", step, files, {}, open_model(run, "run").identity, 5)
    dense, seal = (run / "checkpoints" / "step_00000003" / name for name in ("dense.safetensors", "seal.json"))
    content = bytearray(dense.read_bytes())
    content[-1] ^= 1
    dense.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step_00000003/dense\.safetensors: xxh3_128 is .* damaged, use another"):
        go_back(run, 3)
    seal.unlink()
    with pytest.raises(CheckpointError, match=r"step_00000003/seal\.json"):
        go_back(run, 3)
    assert (run / "checkpoints" / "step_00000006").exists()


def test_lines_without_a_checkpoint_are_kept_and_said(tiny_data, run, caplog):
    shutil.rmtree(run / "checkpoints")
    start_run(run, tiny_config(tiny_data))
    assert "has no checkpoint, but 3 logged lines of later steps than 0: it begins at step 0" in caplog.text
    assert len((run / "set_aside_1" / "metrics.jsonl").read_text().splitlines()) == 4
    caplog.clear()
    write_metrics(run, 0)
    start_run(run, tiny_config(tiny_data))
    assert caplog.text == ""


def test_a_run_that_inherited_its_weights_is_not_started_over(run):
    (run / "lineage.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"has its weights from another model .* make it again in another folder"):
        start_over(run)
    assert (run / "checkpoints").exists()
    assert (set_aside(run) / "lineage.json").read_text() == "{}", "what is set aside keeps the record of its origin"


def test_starting_over_that_is_killed_anywhere_loses_nothing(tiny_data, run, tmp_path):
    wanted = {(run / name).read_bytes() for name in ("metrics.jsonl", "report/file", "tensorboard/file")}
    wanted |= {file.read_bytes() for file in (run / "checkpoints").rglob("*") if file.is_file()}
    kills, more = 0, True
    while more:
        copy = shutil.copytree(run, tmp_path / f"killed_{kills}")
        more = killed_after(kills, lambda: start_over(copy))  # noqa: B023
        assert wanted <= {file.read_bytes() for file in copy.rglob("*") if file.is_file()}
        start_over(copy)
        assert wanted <= {file.read_bytes() for file in copy.rglob("*") if file.is_file()}
        assert not (copy / "checkpoints").exists()
        if kills % 5 == 0:
            start_run(copy, tiny_config(tiny_data, routing=OTHER))
        shutil.rmtree(copy)
        kills += 1
    assert kills > 5
