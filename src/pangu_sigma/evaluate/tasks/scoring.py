"""Metrics that compare an answer with the correct ones, as in the data's published scripts. Needs nothing of this project.

EM and F1 follow CMRC 2018 (squad-style-data/cmrc2018_evaluate.py in github.com/ymcui/cmrc2018), which DRCD's results use
too. ROUGE-L and BLEU-4 follow DuReader (utils/dureader_eval.py in github.com/baidu/DuReader), which takes them from
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
    return float(any(_normalized(prediction) == _normalized(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Return a prediction's best F1 over the correct answers, by the longest common substring of words or Chinese characters.

    The published script first splits Latin text into sentences, with a downloaded model. That separates each sentence's full stop
    from the word before it; here only the last full stop is separated.
    """
    return max((_substring_f1(segments(prediction), segments(answer)) for answer in answers), default=0.0)


def rouge_1(prediction: str, answers: Sequence[str]) -> float:
    """Return a prediction's best F1 over the correct answers, by common characters in any order, without blanks."""
    return max((_count_f1(_characters(prediction), _characters(answer)) for answer in answers), default=0.0)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """Return the F score of a prediction's best precision and recall over the answers, by longest common character subsequence."""
    predicted, precision, recall = _characters(prediction), 0.0, 0.0
    for answer in map(_characters, answers):
        common = _common_subsequence(predicted, answer)
        precision = max(precision, common / max(len(predicted), 1))
        recall = max(recall, common / max(len(answer), 1))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def bleu_4(pairs: Iterable[tuple[str, Sequence[str]]]) -> float:
    """Return the BLEU-4 of all pairs (prediction, answers), with characters as words and the length of the closest answer."""
    prediction_length = answer_length = 0
    matches, totals = [0] * 4, [0] * 4  # n-grams of the predictions that an answer has, and all, for n = 1 to 4
    for prediction, answers in pairs:
        predicted, references = _characters(prediction), [_characters(answer) for answer in answers]
        prediction_length += len(predicted)
        # the length nearest to the prediction's, of two equally near the shorter one
        answer_length += min((abs(len(reference) - len(predicted)), len(reference)) for reference in references)[1]
        for i in range(4):
            reference_grams: Counter[tuple[str, ...]] = Counter()
            for reference in references:
                reference_grams |= _grams(reference, i + 1)  # of each n-gram, the most that one answer has
            matches[i] += (_grams(predicted, i + 1) & reference_grams).total()
            totals[i] += max(0, len(predicted) - i)
    precisions = [(m + 1e-15) / (t + 1e-9) for m, t in zip(matches, totals, strict=True)]  # as in the published script
    precision = math.prod(precisions) ** (1 / 4)  # the geometric mean of n = 1 to 4
    ratio = (prediction_length + 1e-15) / (answer_length + 1e-9)
    return precision * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)  # short predictions have a penalty


def segments(text: str) -> list[str]:
    """Split an answer into words without punctuation, to be scored: single Chinese characters, and English words between them."""
    words, latin_text = [], ""  # `latin_text`: text since the last Chinese character
    for character in text.lower().strip():
        if character in _PUNCTUATION:
            continue
        if "\u4e00" <= character <= "\u9fa5":
            words += [*_words(latin_text), character]
            latin_text = ""
        else:
            latin_text += character
    return words + _words(latin_text)


def _normalized(text: str) -> str:
    """Return a text in lower case, without punctuation and blanks at its ends."""
    return "".join(character for character in text.lower().strip() if character not in _PUNCTUATION)


def _substring_f1(predicted: list[str], answer: list[str]) -> float:
    """Return the F1 of two texts by the length of their longest common substring, in words."""
    common_length = SequenceMatcher(None, predicted, answer, autojunk=False).find_longest_match().size
    precision, recall = common_length / max(len(predicted), 1), common_length / max(len(answer), 1)
    return 2 * precision * recall / (precision + recall) if common_length else 0.0


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, by dynamic programming over prefixes of both."""
    previous_row = [0] * (len(second) + 1)  # by length of the prefix of `second`
    for first_item in first:
        row = [0]
        for i, second_item in enumerate(second):
            row.append(previous_row[i] + 1 if first_item == second_item else max(previous_row[i + 1], row[i]))
        previous_row = row
    return previous_row[-1]


def _count_f1(predicted: list[str], answer: list[str]) -> float:
    """Return the F1 of two texts by the number of characters in both, in any order."""
    common_count = (Counter(predicted) & Counter(answer)).total()
    return 2 * common_count / (len(predicted) + len(answer)) if common_count else 0.0


def _characters(text: str) -> list[str]:
    """Return the characters of a text without blanks."""
    return [character for character in text if character.strip()]


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """Count the n-grams of words."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def span(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score an item for lm-evaluation-harness: exact match and F1 of the model's answer."""
    return {"exact_match": exact_match(results[0], doc["answers"]), "f1": f1(results[0], doc["answers"])}


def long_answer(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Score an item for lm-evaluation-harness: ROUGE of the model's answer, and the texts for BLEU-4 over all items."""
    text, answers = results[0], doc["answers"]
    return {"rouge_1": rouge_1(text, answers), "rouge_l": rouge_l(text, answers), "bleu_4": (text, answers)}


def begins(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score an item for lm-evaluation-harness: 1 if the answer begins with the expected word, without punctuation and blanks."""
    prediction, word = ("".join(_normalized(text).split()) for text in (results[0], doc["answer"]))
    return {doc["metric"]: float(prediction.startswith(word))}


def translated(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Score an item for lm-evaluation-harness: (reference, translation), for BLEU and chrF over all items."""
    pair = doc["reference"], results[0].strip()
    return {"bleu": pair, "chrf": pair}


def bleu_zh(pairs: Sequence[tuple[str, str]]) -> float:
    """Return sacrebleu's BLEU of pairs (reference, Chinese translation), which its tokenizer "zh" cuts into characters."""
    references, translations = zip(*pairs, strict=True)
    return float(corpus_bleu(translations, [references], tokenize="zh").score)
