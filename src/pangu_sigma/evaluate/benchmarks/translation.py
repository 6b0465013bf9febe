"""Benchmark of translation between Chinese and English: BLEU and chrF by sacrebleu.

A folder translation_en_zh or translation_zh_en has test.jsonl, one {"source": …, "reference": …} a line; or test.en and test.zh, a
sentence a line, as `sacrebleu --test-set wmt20 --language-pair en-zh --echo src` and `--echo ref` write WMT's sets.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from pangu_sigma.config import ConfigError
from pangu_sigma.errors import DataError
from pangu_sigma.evaluate.benchmarks.prompt_runner import PromptRunner
from pangu_sigma.evaluate.benchmarks.task_lines import TaskLine, read_rows, task_file, warn_skipped
from pangu_sigma.evaluate.benchmarks.task_result import TaskResult
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.sampling import Sampling

logger = logging.getLogger(__name__)

TEMPLATES = {"translation_en_zh": "English: {source}\nChinese:", "translation_zh_en": "中文：{source}\n英文："}
"""Prompt templates of translation by folder name, which has the source language first; our choice."""

_STOP = ("\n",)
_PUBLISHED = (
    "WMT's test sets, at https://github.com/mjpost/sacrebleu: sacrebleu --test-set wmt20 --language-pair {pair} --echo src, and "
    "--echo ref, write the two files"
)


def run(
    engine: Engine,
    domain: str,
    folder: Path,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    translations: Path | None = None,
) -> TaskResult:
    """Run the translation benchmark: BLEU and chrF, from 0 to 100. folder: folder of its files; its name is a key of `TEMPLATES`.

    limit: maximum number of sentences, the first ones. A source that does not fit loses its end. max_new_tokens: maximum tokens of
    a translation; by default 256, or half of model.seq_length if less. translations: file to write them to, one a line; or None.
    Raises DataError for files that are missing or have no usable line, ConfigError for invalid options.
    """
    if folder.name not in TEMPLATES:
        raise ConfigError(f"{folder} is not called {' or '.join(TEMPLATES)}, which says the languages; rename it")
    _, source, language = folder.name.split("_")
    pairs, skipped = _pairs(folder, source, language)
    pairs = pairs[:limit]
    runner = PromptRunner(engine, domain, 256, max_new_tokens, Sampling(temperature), _STOP)
    prompts = [
        runner.truncate(pair["source"], lambda text: TEMPLATES[folder.name].replace("{source}", text)) for pair in pairs
    ]
    if runner.truncated:
        logger.warning(
            "%d of %d sources lost their end, because their prompts did not fit", runner.truncated, len(pairs)
        )
    outputs = [answer.strip() for (answer,) in runner.answers(prompts)]
    if empty := outputs.count(""):
        logger.warning("%d of %d translations are empty", empty, len(outputs))
    if translations is not None:
        translations.write_text("".join(f"{text}\n" for text in outputs), encoding="utf-8")
    for name, signature in signatures(language).items():
        logger.info("%s is sacrebleu's %s", name, signature)
    references = [pair["reference"] for pair in pairs]
    metrics = {"bleu": bleu(outputs, references, language), "chrf": chrf(outputs, references)}
    return TaskResult(metrics, len(outputs), skipped, runner.truncated)


def _pairs(folder: Path, source: str, reference: str) -> tuple[list[TaskLine], int]:
    """Read the sentences and their translations, and count the lines that are none."""
    published = _PUBLISHED.format(pair=f"{source}-{reference}")
    path = task_file(folder, ["test.jsonl", f"test.{source}"], published)
    if path.name == "test.jsonl":
        return read_rows(path, {"source": str, "reference": str}, check=_fault)
    sources = _sentences(path)
    references = _sentences(task_file(folder, [f"test.{reference}"], published))
    if len(sources) != len(references):
        raise DataError(
            f"{path} has {len(sources)} lines and test.{reference} {len(references)}: line by line one must be the translation of "
            "the other; get both from the same set"
        )
    rows = [{"source": one, "reference": two} for one, two in zip(sources, references, strict=True)]
    faults = {number: fault for number, row in enumerate(rows) if (fault := _fault(row))}
    warn_skipped(path, [f"{path}:{number + 1}: {fault}" for number, fault in faults.items()], len(rows) - len(faults))
    return [row for number, row in enumerate(rows) if number not in faults], len(faults)


def _sentences(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: text in UTF-8 expected; convert the file, such as by iconv") from None


def _fault(row: TaskLine) -> str:
    for name in ("source", "reference"):
        if not row[name].strip():
            return f"{name}: a sentence expected, found none"
    return ""


def bleu(hypotheses: Sequence[str], references: Sequence[str], language: str) -> float:
    """Return the BLEU of translations, one reference each. language: "zh" texts are tokenized by character, others by 13a."""
    return float(_sacrebleu().corpus_bleu(hypotheses, [references], tokenize=_cut_by(language)).score)


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Return the chrF2 of translations: F score of character n-grams up to 6, one reference each."""
    return float(_sacrebleu().corpus_chrf(hypotheses, [references]).score)


def signatures(language: str) -> dict[str, str]:
    """Return sacrebleu's signatures of `bleu` and `chrf`, for reports."""
    metrics = {"bleu": _sacrebleu().metrics.BLEU(tokenize=_cut_by(language)), "chrf": _sacrebleu().metrics.CHRF()}
    for metric in metrics.values():
        metric.num_refs = 1  # it is told with the references otherwise
    return {name: str(metric.get_signature()) for name, metric in metrics.items()}


def _cut_by(language: str) -> str:
    return "zh" if language == "zh" else "13a"


def _sacrebleu() -> ModuleType:
    try:
        import sacrebleu
    except ImportError as error:
        raise ConfigError(f"sacrebleu cannot be loaded ({error}); pip install 'pangu-sigma[evaluate]'") from error
    return sacrebleu
