"""Benchmarks of a model, with the results written to a file and to the run folder, for its report."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from pangu_sigma.evaluate.benchmarks.benchmarks import BenchmarkRequest, kept_beside, run_benchmarks
from pangu_sigma.sealed import as_json, write_atomically
from pangu_sigma.stored.open import kind_of, open_model
from pangu_sigma.training.log.report import BENCHMARKS, write_report

logger = logging.getLogger(__name__)


def benchmark_model(model: Path, asked: BenchmarkRequest, file: Path | None = None) -> dict[str, dict[str, Any]]:
    """Run benchmarks on a trained run or an exported model, and return {task: {metric: value, …, "n", "skipped", "truncated"}}.

    file: file to write the result to as JSON; until then, answers are cached beside it. The results of a run are also written to
    its folder. Raises the errors of `run_benchmarks`.
    """
    cache = kept_beside(file, model, asked) if file is not None else None
    tasks = {name: result.figures() for name, result in run_benchmarks(model, asked, cache, file).items()}
    if kind_of(model) == "run":
        _note_in_run(model, asked, tasks)
    if file is not None and cache is not None:
        file.write_text(json.dumps(tasks, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        cache.remove()
    return tasks


def _note_in_run(run: Path, asked: BenchmarkRequest, tasks: dict[str, Any]) -> None:
    """Write the results to the run folder, and rewrite its report if it has logged steps."""
    opened = open_model(run, "run")
    step = opened.newest.step if opened.newest else None
    of = {name: {"domain": asked.domain_of(name, opened.config), "step": step} for name in tasks}
    file = run / BENCHMARKS
    try:
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        write_atomically(file, as_json(before | {name: figures | of[name] for name, figures in tasks.items()}))
        write_report(run)
    except (OSError, ValueError) as error:
        logger.warning("the run's report does not have these benchmarks: %s", error)
