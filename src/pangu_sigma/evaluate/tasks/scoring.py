"""Metrics that compare an answer with the correct ones, as in the data's published scripts. Needs nothing of this project.

EM and F1 are those of CMRC 2018 (squad-style-data/cmrc2018_evaluate.py in github.com/ymcui/cmrc2018), which DRCD's results use
too. ROUGE-L and BLEU-4 are those of DuReader (utils/dureader_eval.py in github.com/baidu/DuReader), which takes them from
github.com/tylin/coco-caption, with characters as words. PanGu-α's table names ROUGE-1 for DuReader; it has no published script.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from nltk.tokenize import NLTKWordTokenizer
from sacrebleu import corpus_bleu

_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
"""Characters that the script of CMRC 2018 removes. Its list also has …… as one entry, which no single character equals."""

_BETA = 1.2
"""Weight of the recall in ROUGE-L."""

_words = NLTKWordTokenizer().tokenize


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if a correct answer equals the prediction, except for case, punctuation and blanks at the ends; else 0."""
    return float(any(_bare(prediction) == _bare(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Return a prediction's best F1 over the correct answers, by the longest common substring of words or Chinese characters.

    The published script first splits Latin text into sentences, with a downloaded model. That separates each sentence's full stop
    from the word before it; here only the last full stop is separated.
    """
    return max((_f1_of(segments(prediction), segments(answer)) for answer in answers), default=0.0)


def rouge_1(prediction: str, answers: Sequence[str]) -> float:
    """Return a prediction's best F1 over the correct answers, by common characters in any order, without blanks."""
    return max((_overlap(_characters(prediction), _characters(answer)) for answer in answers), default=0.0)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """Return the F score of a prediction's best precision and recall over the answers, by longest common character subsequence."""
    own = _characters(prediction)
    precision = recall = 0.0
    for answer in map(_characters, answers):
        common = _subsequence(own, answer)
        precision = max(precision, common / max(len(own), 1))
        recall = max(recall, common / max(len(answer), 1))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def bleu_4(pairs: Iterable[tuple[str, Sequence[str]]]) -> float:
    """Return the BLEU-4 of all pairs (prediction, answers), with characters as words and the length of the closest answer."""
    own_length = other_length = 0
    right, all_of_them = [0] * 4, [0] * 4
    for prediction, answers in pairs:
        own, others = _characters(prediction), [_characters(answer) for answer in answers]
        own_length += len(own)
        other_length += min((abs(len(other) - len(own)), len(other)) for other in others)[1]
        for n in range(4):
            most: Counter[tuple[str, ...]] = Counter()
            for other in others:
                most |= _grams(other, n + 1)
            right[n] += (_grams(own, n + 1) & most).total()
            all_of_them[n] += max(0, len(own) - n)
    precision = math.prod((r + 1e-15) / (a + 1e-9) for r, a in zip(right, all_of_them, strict=True)) ** (1 / 4)
    ratio = (own_length + 1e-15) / (other_length + 1e-9)
    return precision * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def segments(text: str) -> list[str]:
    """Split an answer into words without punctuation, to be scored: single Chinese characters, and English words between them."""
    found, other = [], ""
    for character in text.lower().strip():
        if character in _PUNCTUATION:
            continue
        if "\u4e00" <= character <= "\u9fa5":
            found += [*_words(other), character]
            other = ""
        else:
            other += character
    return found + _words(other)


def _bare(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _PUNCTUATION)


def _f1_of(own: list[str], answer: list[str]) -> float:
    common = SequenceMatcher(None, own, answer, autojunk=False).find_longest_match().size
    if not common:
        return 0.0
    precision, recall = common / len(own), common / len(answer)
    return 2 * precision * recall / (precision + recall)


def _subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    before = [0] * (len(other) + 1)
    for mine in one:
        now = [0]
        for i, theirs in enumerate(other):
            now.append(before[i] + 1 if mine == theirs else max(before[i + 1], now[i]))
        before = now
    return before[-1]


def _overlap(own: list[str], answer: list[str]) -> float:
    common = (Counter(own) & Counter(answer)).total()
    return 2 * common / (len(own) + len(answer)) if common else 0.0


def _characters(text: str) -> list[str]:
    return [character for character in text if character.strip()]


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def span(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score an item for lm-evaluation-harness: exact match and F1 of the model's answer."""
    return {"exact_match": exact_match(results[0], doc["answers"]), "f1": f1(results[0], doc["answers"])}


def long_answer(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Score an item for lm-evaluation-harness: ROUGE of the model's answer, and the texts for BLEU-4 over all items."""
    own, answers = results[0], doc["answers"]
    return {"rouge_1": rouge_1(own, answers), "rouge_l": rouge_l(own, answers), "bleu_4": (own, answers)}


def begins(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score an item for lm-evaluation-harness: 1 if the answer begins with the expected word, without punctuation and blanks."""
    own, word = ("".join(_bare(text).split()) for text in (results[0], doc["answer"]))
    return {doc["metric"]: float(own.startswith(word))}


def translated(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Score an item for lm-evaluation-harness: reference and translation, for BLEU and chrF over all items."""
    pair = doc["reference"], results[0].strip()
    return {"bleu": pair, "chrf": pair}


def bleu_zh(pairs: Sequence[tuple[str, str]]) -> float:
    """Return sacrebleu's BLEU of pairs (reference, Chinese translation), which its tokenizer "zh" cuts into characters."""
    references, translations = zip(*pairs, strict=True)
    return float(corpus_bleu(translations, [references], tokenize="zh").score)
