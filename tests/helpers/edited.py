"""Configurations and logs of runs, edited so that they are those of the run all the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from pangu_sigma.checkpoint.model_files import CONFIG_FILE, write_config
from pangu_sigma.config_file import parse_config
from pangu_sigma.sealed import sealed_line
from pangu_sigma.training.log.metrics import FILE, read_metrics


def edit_config(run: Path, changes: dict[str, str]) -> None:
    """Replace texts in a run's configuration.json, and write its hash anew."""
    text = (run / CONFIG_FILE).read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    write_config(run, parse_config(json.loads(text)["config"]), "run")


def edit_evaluations(tiny_run: Path, folder: Path, change: Callable[[dict], object]) -> Path:
    """A copy of the run whose evaluation lines `change` has changed."""
    run = shutil.copytree(tiny_run, folder)
    lines = read_metrics(run)
    for line in lines:
        if line["kind"] == "evaluation":
            change(line)
    (run / FILE).write_text("".join(map(sealed_line, lines)), encoding="utf-8")
    return run


def stopped_at(run: Path, step: int, folder: Path) -> Path:
    """A copy of a run as it was when it had just saved `step`; what it logged later is still there, as after a crash."""
    copy = shutil.copytree(run, folder)
    for path in (copy / "checkpoints").glob("step_*"):
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    return copy
