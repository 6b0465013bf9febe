"""Segmentation of text into runs, each for PanGu-α's SentencePiece model or for the English one.

A run for PanGu-α is already segmented into words, exactly as PanGu-α did it. Words do not depend on the slot's SentencePiece
model, so they are found once for each document. This module does not use token ids.
"""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

from pangu_sigma.text.normalisation import VANISHING
from pangu_sigma.text.words import words

HAN = "\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Han characters and radicals, as the inside of a regular expression's [ ]."""

_MARKS = "\u3000-\u303f\ufe30-\ufe4f\uff00-\uffef“”‘’—…·"
"""CJK punctuation, full-width forms, and the quotes and dashes that Chinese text shares with Latin text."""

_CHINESE_RUN = re.compile(f"([{_MARKS}]{{0,8}}[{HAN}](?:[\\W\\d_]*[{HAN}{_MARKS}])*)")
_HAN = re.compile(f"[{HAN}]")
_LATIN_WORD = re.compile(r"[A-Za-z]+")

PATTERNS = {"chinese_run": _CHINESE_RUN.pattern, "han": _HAN.pattern, "latin_word": _LATIN_WORD.pattern}
"""Patterns that decide runs and tags, by name, for tokenizers outside of this package (tokenizer_config.json of `export`)."""


class Run(NamedTuple):
    """Run of text: a stretch that one SentencePiece model encodes, PanGu-α's if `alpha`, else the English one.

    text: for PanGu-α, jieba's words joined with a blank. As in PanGu-α, ▂ and ▃ then stand for blanks and newlines. spelled: True
    for a run of characters that only bytes can spell: a ▂ or ▃ of the text itself, or one that PanGu-α's normaliser drops.
    """

    alpha: bool
    text: str
    spelled: bool = False


def runs_of(text: str, language: str) -> tuple[Run, ...]:
    """Split text into runs, stretches that one SentencePiece model encodes, in order. language: language of the domain.

    `zh`: one run for PanGu-α. `en`, `python`, `java`: one run for the English model. `mixed`: by script. A Chinese run is then Han
    and Chinese punctuation, with digits, blanks and marks between them. Latin words, even single ones inside a Chinese sentence,
    are English runs: there a word is a token or two, in PanGu-α one token a letter.
    """
    if not text:
        return ()
    if language == "zh":
        return _chinese(text)
    if language != "mixed":
        return (Run(False, text),)
    stretches = _CHINESE_RUN.split(text)  # every other one is Chinese
    parts = (_chinese(some) if i % 2 else (Run(False, some),) for i, some in enumerate(stretches) if some)
    return tuple(itertools.chain.from_iterable(parts))


def english_runs(text: str, language: str) -> list[str]:
    """Return the text of the English runs alone, without cutting Chinese into words."""
    if language == "zh":
        return []
    return [some for some in (_CHINESE_RUN.split(text)[::2] if language == "mixed" else [text]) if some]


def _chinese(text: str) -> tuple[Run, ...]:
    """Make runs for PanGu-α. Vanishing characters are runs of their own: jieba takes each for a word, so no other id changes."""
    stretches = VANISHING.split(text)  # every other one vanishes
    return tuple(Run(True, some, True) if i % 2 else Run(True, words(some)) for i, some in enumerate(stretches) if some)


def is_chinese(text: str) -> bool:
    """Return True if text has more Han characters than Latin words; this decides the tag where no language is stated."""
    return len(_HAN.findall(text)) > len(_LATIN_WORD.findall(text))
