"""What a model answers to the test file of a task, and what its answers are worth."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sacrebleu import corpus_bleu, corpus_chrf

from pangu_sigma.checkpoint.run_folder import run_config
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import DataError
from pangu_sigma.evaluate.tasks.scoring import exact_match, f1
from pangu_sigma.finetune.samples import Conversation, parse_conversation
from pangu_sigma.generate.chat_template import ChatTemplate
from pangu_sigma.generate.text import generate, open_engine
from pangu_sigma.sealed import write_atomically
from pangu_sigma.text.documents import Rejected, items_of
from pangu_sigma.text.json_files import json_lines

ASKED_AT_ONCE = 32
"""Texts that are written at a time; it changes no answer."""

TaskMetric = Callable[[Sequence[str], Sequence[str], str], float]

TASK_METRICS: Mapping[str, TaskMetric] = {
    "bleu": lambda answers, wanted, to: corpus_bleu(answers, [wanted], tokenize="zh" if to == "zh" else "13a").score,
    "chrf": lambda answers, wanted, _: corpus_chrf(answers, [wanted]).score,
    "exact_match": lambda answers, wanted, _: 100 * _mean(exact_match, answers, wanted),
    "f1": lambda answers, wanted, _: 100 * _mean(f1, answers, wanted),
}
"""Metrics by name, each from 0 to 100; they take answers, the right ones, and the language of these."""


def answer_test(model: Path, tuned: Path, test: Path, kept: Path, max_new_tokens: int = 64) -> dict[str, Any]:
    """Ask a model all prompts of a test file as the tuned run `tuned` is asked, and score the greedy answers.

    model: that run, or its parent, which answers in the same template. kept: a JSON file for answers and scores; what it has is not
    asked again. Returns {"scores": metric by name, "n": items, "skipped": lines that cannot be used, "unfinished": answers that
    did not end, "answers": texts}. Raises DataError for a file without a line that can be used.
    """
    if kept.exists():
        return json.loads(kept.read_bytes())
    config = run_config(tuned)
    if config.finetune is None:
        raise ConfigError(f"{tuned} is a run that is not tuned to a task")
    talks, skipped = _talks(test, config)
    templates = {domain.name: ChatTemplate.of(domain, config.chat) for domain in domains_of(config)}
    prompts = [(talk.domain, templates[talk.domain].prompt(talk.messages[:-1])) for talk in talks]
    stop = templates[config.finetune.domain].stop
    found = generate(open_engine(model, lanes=ASKED_AT_ONCE), prompts, max_new_tokens, stop=stop)
    answers, wanted = [each.text.strip() for each in found], [talk.messages[-1][1] for talk in talks]
    is_translation = config.finetune.task.startswith("translation_")
    metrics = ("bleu", "chrf") if is_translation else ("exact_match", "f1")
    result = {
        "scores": {name: TASK_METRICS[name](answers, wanted, language_of(config)) for name in metrics},
        "n": len(answers),
        "skipped": skipped,
        "unfinished": sum(not each.finished for each in found),
        "answers": answers,
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, f"{json.dumps(result, ensure_ascii=False, indent=1)}\n".encode())
    return result


def language_of(config: Config) -> str:
    """The language of a task's answers: where it translates to, else that of its domain."""
    assert config.finetune is not None
    task = config.finetune.task
    if task.startswith("translation_"):
        return task.rpartition("_")[2]
    return domains_of(config).named(config.finetune.domain).language


def _talks(test: Path, config: Config) -> tuple[list[Conversation], int]:
    """The conversations of a file, and the number of lines that are none."""
    assert config.finetune is not None
    domains, usual = domains_of(config), config.finetune.domain
    rows = json_lines(test, option="test file")
    lines = list(items_of(test, rows, lambda line: parse_conversation(line, domains, usual)))
    talks = [line for line in lines if not isinstance(line, Rejected)]
    if not talks:
        raise DataError(f"test file {test}: has no line that can be used")
    return talks, len(lines) - len(talks)


def _mean(one: Callable[[str, Sequence[str]], float], answers: Sequence[str], wanted: Sequence[str]) -> float:
    return float(np.mean([one(answer, [right]) for answer, right in zip(answers, wanted, strict=True)]))
