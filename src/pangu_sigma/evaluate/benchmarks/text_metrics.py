"""Metrics of answers and texts. Values are fractions from 0 to 1, except BLEU and chrF, which are from 0 to 100 as in sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from pangu_sigma.config import ConfigError


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
