"""Metrics of texts: sacrebleu's with the right tokenizer, and shares of different n-grams; the rest is tasks/scoring.py's."""

from __future__ import annotations

import pytest

from pangu_sigma.evaluate.benchmarks.translation import bleu, chrf


def test_chinese_is_cut_by_character_for_bleu():
    """Of five characters all are right: 5/5, 4/4, 3/3, 2/2, and the reference is one longer: exp(1 - 6/5)."""
    assert bleu(["你好吗朋友"], ["你好吗朋友们"], "zh") == pytest.approx(81.87307530779823)
    assert bleu(["你好吗朋友"], ["你好吗朋友们"], "en") == 0.0, "one word, and another one"


def test_english_is_cut_into_words_and_punctuation_for_bleu():
    assert bleu(["The cat sat on the mat."], ["The cat sat on the mat."], "en") == pytest.approx(100.0)
    assert 0 < bleu(["A cat sat on the mat."], ["The cat sat on the mat."], "en") < 100


def test_chrf_is_chrf2_of_characters():
    """n-grams of abc against abd: 2 of 3, 1 of 2, 0 of 1 are right, in precision and recall alike; no longer ones: their mean."""
    assert chrf(["abc"], ["abd"]) == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)
