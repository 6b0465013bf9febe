"""The command of a rank, and the number of ranks that the user counts on. A whole run: test_launch_training.py."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from helpers.prepared import change_vocabulary

from experiments.chaos.launched import free_port
from experiments.tiny import SAVED_AT, STEPS
from pangu_sigma.api import training_command
from pangu_sigma.checkpoint.checkpoint import checkpoints
from pangu_sigma.cli import main
from pangu_sigma.data.manifest import Manifest
from pangu_sigma.ranks.launch import Job


def test_every_rank_trains_with_the_users_file_folder_and_settings():
    command = training_command(Path("a b.yaml"), Path("runs/a"), ["train.steps=3", "seed=1"], "ascend")
    assert command[:4] == [sys.executable, "-m", "pangu_sigma", "train"]
    options = ["--output", "runs/a", "--device", "ascend", "--set", "train.steps=3", "--set", "seed=1"]
    assert command[4:] == ["a b.yaml", *options]
    run = training_command(Path("runs/a"), Path("runs/a"), allow_data_change=True)
    assert run[4:] == ["runs/a", "--allow-data-change"]


def test_a_launch_starts_over_once_and_its_ranks_never_do(tiny_run, tmp_path, monkeypatch, capsys):
    """A rank that starts again after a failure must go on."""
    launched: list[Job] = []
    monkeypatch.setattr("pangu_sigma.ranks.launch.launch", lambda job: launched.append(job) or 0)
    run = shutil.copytree(tiny_run, tmp_path / "run")
    launch = ["launch", str(run), "--master-port", str(free_port())]
    assert main([*launch, "--start-over", "--allow-data-change", "--dry-run"]) == 0
    assert (run / "checkpoints").exists()
    assert main([*launch, "--start-over", "--allow-data-change", "--max-restarts", "3"]) == 0
    assert not (run / "checkpoints").exists()
    assert len(list((run / "set_aside_1" / "checkpoints").glob("step_*"))) == 2
    assert launched[0].command[4:] == [str(run), "--allow-data-change"]
    assert main([*launch, "--set", "train.steps=5"]) == 0
    assert launched[1].command[4:] == [str(run), "--set", "train.steps=5"]
    again = str(shutil.copytree(tiny_run, tmp_path / "again"))
    assert main(["launch", again, "--master-port", str(free_port()), "--from-step", str(SAVED_AT)]) == 0
    assert [path.name for path in checkpoints(tmp_path / "again" / "checkpoints")] == [f"step_{SAVED_AT:08d}"]
    assert launched.pop().command[4:] == [again]
    (run / "logs").symlink_to(tmp_path)
    assert main([*launch, "--set", "train.steps=5"]) == 2
    assert (len(launched), f"{run}/logs is a link" in capsys.readouterr().err) == (2, True)


def test_a_layout_that_mindspore_refuses_is_refused_before_ranks_start(capsys):
    keys = ("train.batch_size=48", "parallel.groups=4", "parallel.data=3", "parallel.tensor=2")
    sets = [text for key in keys for text in ("--set", key)]
    launch = ["launch", "sigma_tiny", *sets, "--device", "ascend", "--nodes", "3", "--dry-run"]
    assert main(launch) == 2
    assert "makes a communication group of ranks 0, 2, 4; on Ascend 910A MindSpore takes" in capsys.readouterr().err
    assert main([*launch, "--set", "parallel.chip=910b"]) == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("key", 'model.activation: "fast_gelu" → "erf"'),
        ("vocabulary", "holds a run with another vocabulary than data.path="),
        ("text", "holds other text than "),
    ],
)
def test_what_a_run_does_not_go_with_is_refused_before_ranks_start(
    tiny_run, tiny_data, tmp_path, monkeypatch, capsys, changed, message
):
    """In the words of `train`, and nothing is written."""
    monkeypatch.setattr("pangu_sigma.ranks.launch.launch", lambda job: pytest.fail("ranks were started"))
    run, data = shutil.copytree(tiny_run, tmp_path / "run"), shutil.copytree(tiny_data, tmp_path / "data")
    if changed == "vocabulary":
        change_vocabulary(data)
    if changed == "text":
        monkeypatch.setattr(Manifest, "content_hash", property(lambda _: "b" * 32))
    before = contents(run)
    setting = "model.activation=erf" if changed == "key" else f"data.path={data}"
    assert main(["launch", str(run), "--master-port", str(free_port()), "--set", setting]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count(str(run)) == 1, "one message"
    assert contents(run) == before


def test_what_may_change_is_said_and_launched(tiny_run, tmp_path, monkeypatch, caplog):
    launched: list[Job] = []
    monkeypatch.setattr("pangu_sigma.ranks.launch.launch", lambda job: launched.append(job) or 0)
    caplog.set_level("INFO")
    run = shutil.copytree(tiny_run, tmp_path / "run")
    before = contents(run)
    assert main(["launch", str(run), "--master-port", str(free_port()), "--set", "train.steps=77"]) == 0
    assert (len(launched), f"train.steps: {STEPS} → 77" in caplog.text) == (1, True)
    assert contents(run) == before, "a rank writes it"


def contents(run: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
