"""The command of a rank, and the number of ranks that the user counts on. A whole run: test_launch_training.py."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from helpers.launched import free_port
from helpers.small_clusters import by_hand

from pangu_sigma.cli import main
from pangu_sigma.config import ConfigError
from pangu_sigma.launching.launch import Job
from pangu_sigma.launching.training import check_ranks, training_command


def test_every_rank_trains_with_the_users_file_folder_and_settings():
    command = training_command(Path("a b.yaml"), Path("runs/a"), ["train.steps=3", "seed=1"], ascend=True)
    assert command[:4] == [sys.executable, "-m", "pangu_sigma", "train"]
    assert command[4:] == [
        "a b.yaml", "--run", "runs/a", "--device", "ascend", "--set", "train.steps=3", "--set", "seed=1",
    ]  # fmt: skip
    assert "--device" not in training_command(Path("a.yaml"), Path("runs/a"), [])
    without = training_command(None, Path("runs/a"), [], other_data=True, no_lock=True)
    assert without[4:] == ["--run", "runs/a", "--other-data", "--no-lock"]


def test_a_launch_starts_over_once_and_its_ranks_never_do(tiny_run, tmp_path, monkeypatch):
    """A rank that starts again after a failure must go on."""
    launched: list[Job] = []
    monkeypatch.setattr("pangu_sigma.launching.launch.launch", lambda job: launched.append(job) or 0)
    run = shutil.copytree(tiny_run, tmp_path / "run")
    launch = ["launch", "--run", str(run), "--master-port", str(free_port())]
    assert main([*launch, "--start-over", "--other-data", "--dry-run"]) == 0
    assert (run / "checkpoints").exists()
    assert main([*launch, "--start-over", "--other-data", "--restarts", "3"]) == 0
    assert not (run / "checkpoints").exists()
    assert (run / "set_aside_1" / "checkpoints" / "LATEST").exists()
    assert launched[0].command[4:] == ["--run", str(run), "--other-data"]
    assert main([*launch, "--set", "train.steps=5"]) == 0
    assert launched[1].command[4:] == ["--run", str(run), "--set", "train.steps=5"]


def test_another_number_of_processes_than_is_laid_out_is_refused():
    check_ranks(by_hand(), 4)
    check_ranks(by_hand(), None)
    with pytest.raises(ConfigError, match=r"^--processes 8 is not what the parallel section lays out: .* is 4 ranks"):
        check_ranks(by_hand(), 8)
