"""How an answer is compared with the right ones, as the publishers of the data do it. Needs nothing of this project.

EM and F1 are those of CMRC 2018 (squad-style-data/cmrc2018_evaluate.py in github.com/ymcui/cmrc2018), which DRCD's results use too.
ROUGE-L and BLEU-4 are those of DuReader (utils/dureader_eval.py in github.com/baidu/DuReader), which takes them from
github.com/tylin/coco-caption, with characters as words. PanGu-α's table names ROUGE-1 for DuReader; it has no published script.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nltk.tokenize import NLTKWordTokenizer

_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
"""What the script of CMRC 2018 leaves out. Its list has …… too, as one entry, which no single character equals."""

_BETA = 1.2
"""Weight of the recall in ROUGE-L."""

_words = NLTKWordTokenizer().tokenize


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if an answer equals the prediction, case, punctuation and blanks at the ends aside; else 0."""
    return float(any(_bare(prediction) == _bare(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The best F1 over the answers, by the longest run of words that both have; a Chinese character is a word.

    The publisher's script cuts Latin text into sentences first, by a model that it downloads, which tells apart a full stop inside
    such text from the word before it; here only the last one is.
    """
    return max((_f1_of(segments(prediction), segments(answer)) for answer in answers), default=0.0)


def rouge_1(prediction: str, answers: Sequence[str]) -> float:
    """The best F1 over the answers, by the characters that both have, in any order; blanks do not count."""
    return max((_overlap(_characters(prediction), _characters(answer)) for answer in answers), default=0.0)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """The F of the best precision and the best recall over the answers, by the longest common subsequence of characters."""
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
    """BLEU-4 over all (prediction, answers), of characters, with the length of the closest answer."""
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
    """A text as words, without punctuation: each Chinese character is one, what is between them is cut as English is."""
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
    common = _run(own, answer)
    if not common:
        return 0.0
    precision, recall = common / len(own), common / len(answer)
    return 2 * precision * recall / (precision + recall)


def _run(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest run that both have."""
    longest, before = 0, [0] * (len(other) + 1)
    for mine in one:
        now = [0, *(before[i] + 1 if mine == theirs else 0 for i, theirs in enumerate(other))]
        longest, before = max(longest, *now), now
    return longest


def _subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
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
    """EM and F1 of an answer, for lm-evaluation-harness."""
    return {"exact_match": exact_match(results[0], doc["answers"]), "f1": f1(results[0], doc["answers"])}


def long_answer(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """ROUGE of an answer, and what BLEU-4 over all answers counts, for lm-evaluation-harness."""
    own, answers = results[0], doc["answers"]
    return {"rouge_1": rouge_1(own, answers), "rouge_l": rouge_l(own, answers), "bleu_4": (own, answers)}


def begins(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if an answer begins with the word, punctuation and blanks aside, for lm-evaluation-harness."""
    own, word = ("".join(_bare(text).split()) for text in (results[0], doc["answer"]))
    return {doc["metric"]: float(own.startswith(word))}
