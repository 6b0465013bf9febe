"""Held-out losses and benchmarks of a model together: what `pangu-sigma evaluate --tasks` gives."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from pangu_sigma.checkpoint.root import step_of
from pangu_sigma.config import ConfigError
from pangu_sigma.errors import DataError
from pangu_sigma.evaluate.benchmarks import BenchmarkRequest, figures_of, format_tasks, kept_beside, run_benchmarks
from pangu_sigma.evaluate.kept import Kept
from pangu_sigma.evaluate.run import evaluate_run, format_losses
from pangu_sigma.sealed import as_json, write_atomically
from pangu_sigma.stored.open import kind_of, open_model
from pangu_sigma.train.report import BENCHMARKS, write_report

logger = logging.getLogger(__name__)


def evaluate_with_tasks(
    model: Path, asked: BenchmarkRequest, all: bool = False, file: Path | None = None
) -> dict[str, Any]:
    """{"domains": `evaluate_run`'s losses, "tasks": {name: {metric: value, …, "n", "skipped", "truncated"}}} of a run or an export.

    all: True for the losses of all held-out text. file: where the result will be; what is done is kept beside it until then. Where
    the text of a model is gone it has no losses, and a warning says so. A run keeps the figures for its report.
    Raises as `run_benchmarks`.
    """
    kept = kept_beside(file, model, asked) if file is not None else None
    tasks = figures_of(run_benchmarks(model, asked, kept, file))
    found = {"domains": _losses(model, all, kept), "tasks": tasks}
    if kind_of(model) == "run":
        _note_in_run(model, asked, tasks)
    if kept is not None:
        kept.remove()
    return found


def format_evaluation(found: dict[str, Any]) -> str:
    """Both tables, as text."""
    losses = [format_losses(found["domains"])] if found["domains"] else []
    return "\n\n".join([*losses, format_tasks(found["tasks"])])


def _losses(model: Path, all: bool, kept: Kept | None) -> dict[str, Any]:
    name = f"losses {'all' if all else 'some'}"
    losses = kept.get(name) if kept else None
    if losses is None:
        try:
            losses = evaluate_run(model, all)
        except (ConfigError, DataError) as error:
            logger.warning("no held-out losses: %s", error)
            return {}
        if kept:
            kept.put(name, losses)
    return losses


def _note_in_run(run: Path, asked: BenchmarkRequest, tasks: dict[str, Any]) -> None:
    """Keep the figures in the run folder, and write its report anew if it has logged steps."""
    opened = open_model(run, "run")
    step = step_of(opened.latest) if opened.latest else None
    of = {name: {"domain": asked.domain_of(name, opened.config), "step": step} for name in tasks}
    file = run / BENCHMARKS
    try:
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        write_atomically(file, as_json(before | {name: figures | of[name] for name, figures in tasks.items()}))
        write_report(run)
    except (OSError, ValueError) as error:
        logger.warning("the run's report does not have these benchmarks: %s", error)
