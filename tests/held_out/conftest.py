"""Evaluations of the tiny run, each made once: its graph is compiled for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
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
def all_losses(graph_mode, tiny_run) -> dict[str, dict[str, Any]]:
    """The run on all held-out samples."""
    return evaluate_run(tiny_run, all=True)
