"""Evaluations of the tiny run, each made once: its graph is compiled for it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.edited import edit_config
from helpers.numbered import folder, four, tokenizer
from helpers.trainers import trainer

from pangu_sigma.held_out.run import evaluate_run

__all__ = ["folder", "four", "tokenizer", "trainer"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="session")
def run_losses(graph_mode, tiny_run) -> dict[str, dict[str, Any]]:
    """The run on the samples of its evaluations, which leaves it as it was."""
    before = files_of(tiny_run)
    losses = evaluate_run(tiny_run)
    assert files_of(tiny_run) == before
    return losses


@pytest.fixture(scope="session")
def moved_run(tiny_run, tiny_data, tmp_path_factory) -> tuple[Path, Path]:
    """A copy of the run, and the copy of its data that it reads."""
    folder = tmp_path_factory.mktemp("moved")
    run, data = shutil.copytree(tiny_run, folder / "run"), shutil.copytree(tiny_data, folder / "data")
    edit_config(run, {str(tiny_data): str(data)})
    return run, data


@pytest.fixture(scope="session")
def all_losses(graph_mode, moved_run) -> dict[str, dict[str, Any]]:
    """The run on all held-out samples, from where its data were moved."""
    return evaluate_run(moved_run[0], all=True)
