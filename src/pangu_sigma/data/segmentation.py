"""Text cut into runs: some are read by PanGu-α's model, the others by the English pieces.

A run for PanGu-α is already cut into words, exactly as PanGu-α did it, because what reads it (a slot's SentencePiece model) changes
while the words do not: they are found once for each document. Nothing here knows ids.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pangu_sigma.data.normalisation import VANISHING
from pangu_sigma.data.words import NEWLINE, SPACE, words

HAN = "\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Han characters and radicals, as the inside of a regular expression's [ ]."""

_MARKS = "\u3000-\u303f\ufe30-\ufe4f\uff00-\uffef“”‘’—…·"
"""CJK punctuation, full-width forms, and the quotes and dashes that Chinese text shares with Latin text."""

_CHINESE_RUN = re.compile(f"[{_MARKS}]{{0,8}}[{HAN}](?:[\\W\\d_]*[{HAN}{_MARKS}])*")
_HAN = re.compile(f"[{HAN}]")
_LATIN_WORD = re.compile(r"[A-Za-z]+")
_MARK = re.compile(f"([{SPACE}{NEWLINE}])")


class Run(NamedTuple):
    """A stretch of text and who reads it.

    `text` of a run with `alpha` is jieba's words, joined with a blank. As PanGu-α has it, ▂ and ▃ in it are the text's blanks and
    newlines; a ▂ or ▃ of the text itself stands after two blanks, which SentencePiece reads as one. `spelled`: True if there are
    such marks or vanishing characters in it, which only bytes can spell.
    """

    alpha: bool
    text: str
    spelled: bool = False


def runs_of(text: str, language: str) -> tuple[Run, ...]:
    """Runs of `text` in order; `language` is a domain's.

    `zh`: all of it for PanGu-α. `en`, `python`, `java`: all of it for the English pieces. `mixed`: by script. There a
    Chinese run is Han and Chinese punctuation, with whatever stands between them that has no letters of another script
    (digits, blanks, marks); Latin words, even single ones inside a Chinese sentence, are English, where they are a
    token or two, and not one token a letter as in PanGu-α.
    """
    if not text:
        return ()
    if language == "zh":
        return (_chinese(text),)
    if language != "mixed":
        return (Run(False, text),)
    runs, position = [], 0
    for match in _CHINESE_RUN.finditer(text):
        if match.start() > position:
            runs.append(Run(False, text[position : match.start()]))
        runs.append(_chinese(match.group()))
        position = match.end()
    if position < len(text):
        runs.append(Run(False, text[position:]))
    return tuple(runs)


def _chinese(text: str) -> Run:
    """A run for PanGu-α. Marks of the text itself get their blanks: jieba takes each of them for a word of its own."""
    if not VANISHING.search(text):
        return Run(True, words(text))
    cut = _MARK.split(text)  # every other one is a mark; an empty one in front makes the blanks before the first word
    written = [f" {some}" if i % 2 else words(some) for i, some in enumerate(cut) if some or i == 0]
    return Run(True, " ".join(written), True)


def is_chinese(text: str) -> bool:
    """More Han characters than Latin words: the language tag that a text gets when nobody stated its language."""
    return len(_HAN.findall(text)) > len(_LATIN_WORD.findall(text))
