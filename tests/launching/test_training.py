"""The command of a rank, and the number of ranks that the user counts on. A whole run: test_launch_training.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.small_clusters import by_hand

from pangu_sigma.config import ConfigError
from pangu_sigma.launching.training import check_ranks, training_command


def test_every_rank_trains_with_the_users_file_folder_and_settings():
    command = training_command(Path("a b.yaml"), Path("runs/a"), ["train.steps=3", "seed=1"], ascend=True)
    assert command[:4] == [sys.executable, "-m", "pangu_sigma", "train"]
    assert command[4:] == [
        "a b.yaml", "--run", "runs/a", "--device", "ascend", "--set", "train.steps=3", "--set", "seed=1",
    ]  # fmt: skip
    assert "--device" not in training_command(Path("a.yaml"), Path("runs/a"), [])


def test_another_number_of_processes_than_is_laid_out_is_refused():
    check_ranks(by_hand(), 4)
    check_ranks(by_hand(), None)
    with pytest.raises(ConfigError, match=r"^--processes 8 is not what the parallel section lays out: .* is 4 ranks"):
        check_ranks(by_hand(), 8)
