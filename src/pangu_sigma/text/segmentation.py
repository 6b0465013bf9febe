"""Segmentation of text into runs, each for PanGu-α's SentencePiece model or for the English one.

A run for PanGu-α is already segmented into words, exactly as PanGu-α did it. Words do not depend on the slot's SentencePiece
model, so they are found once for each document. This module does not use token ids.

Of Chinese text, encoding and decoding change the characters that PanGu-α's text normaliser changes, and no others. SentencePiece's
rules `nmt_nfkc`, which are in PanGu-α's model, fold a character to its NFKC form: `，` to `,`, `１` to `1`, `㎏` to `kg`. Some
characters become a blank or nothing instead; these vanish, because PanGu-α's blanks only separate words. Characters are never
composed with each other, because jieba makes each composable character a word of its own.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from typing import NamedTuple

import numpy as np
import sentencepiece

from pangu_sigma.text.sentencepieces import META, alpha_model
from pangu_sigma.text.words import NEWLINE, SPACE, words

HAN = "\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Han characters and radicals, as the inside of a regular expression's [ ]."""

_MARKS = "\u3000-\u303f\ufe30-\ufe4f\uff00-\uffef“”‘’—…·"
"""CJK punctuation, full-width forms, and the quotes and dashes that Chinese text shares with Latin text."""

_CHINESE_RUN = re.compile(f"([{_MARKS}]{{0,8}}[{HAN}](?:[\\W\\d_]*[{HAN}{_MARKS}])*)")
_HAN = re.compile(f"[{HAN}]")
_LATIN_WORD = re.compile(r"[A-Za-z]+")

VANISHING = re.compile(
    "([\x01-\x09\x0b-\x1f\x7f\x8f\x9f\xa0\u1680\u2000-\u200f\u2028\u2029\u202f\u205f\u3000\ufeff\ufffd"  # to a blank or nothing
    "\xa8\xaf\xb4\xb8\u02d8-\u02dd\u037a\u0384\u0385\u1fbd\u1fbf-\u1fc1\u1fcd-\u1fcf\u1fdd-\u1fdf\u1fed\u1fee\u1ffd\u1ffe\u2017"
    "\u203e\u309b\u309c\ufc5e-\ufc63\ufdfa\ufdfb\ufe49-\ufe4c\ufe70\ufe72\ufe74\ufe76\ufe78\ufe7a\ufe7c\ufe7e\uffe3"  # with a blank
    f"{META}{SPACE}{NEWLINE}]+)"
)
"""Pattern of characters that PanGu-α's model loses: characters that its normaliser drops, and ▂ and ▃, which it reads as blank and
newline. These characters decide token ids: a change needs a new format version of the tokenizer."""

PATTERNS = {"chinese_run": _CHINESE_RUN.pattern, "han": _HAN.pattern, "latin_word": _LATIN_WORD.pattern} | {
    "vanishing": VANISHING.pattern
}
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
        return _chinese_runs(text)
    if language != "mixed":
        return (Run(False, text),)
    parts = enumerate(_CHINESE_RUN.split(text))  # parts of odd numbers are Chinese
    runs = (_chinese_runs(part) if i % 2 else (Run(False, part),) for i, part in parts if part)
    return tuple(itertools.chain.from_iterable(runs))


def english_runs(text: str, language: str) -> list[str]:
    """Return the texts of the runs for the English model, as `runs_of` does, but do not cut Chinese into words."""
    if language == "zh":
        return []
    parts = _CHINESE_RUN.split(text)[::2] if language == "mixed" else [text]  # parts of odd numbers are Chinese
    return [part for part in parts if part]


def _chinese_runs(text: str) -> tuple[Run, ...]:
    """Split Chinese text into runs for PanGu-α. Characters that PanGu-α's model loses (VANISHING) are runs of their own; jieba
    takes each for a word anyway, so the words beside them, and their ids, stay the same."""
    parts = enumerate(VANISHING.split(text))  # parts of odd numbers vanish
    return tuple(Run(True, part, spelled=True) if i % 2 else Run(True, words(part)) for i, part in parts if part)


def is_chinese(text: str) -> bool:
    """Return True if text has more Han characters than Latin words; this decides the tag where no language is stated."""
    return len(_HAN.findall(text)) > len(_LATIN_WORD.findall(text))


def folded_characters(text: str) -> int:
    """Return the number of characters of `text` that PanGu-α's normaliser replaces by their NFKC form."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return int(np.count_nonzero(_is_folded()[codes]))


@functools.cache
def _is_folded() -> np.ndarray:
    """Return a table with True for each code point that PanGu-α's normaliser folds, bool [0x110000]. Python's NFKC, which is newer,
    only selects the candidates."""
    is_folded = np.zeros(0x110000, dtype=bool)
    normaliser = sentencepiece.SentencePieceProcessor(model_proto=alpha_model())
    # without surrogates; NFKC changes no character from 0x30000 on
    characters = (chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000)
    candidates = [c for c in characters if unicodedata.normalize("NFKC", c) != c and not VANISHING.match(c)]
    for character, normal_form in zip(candidates, normaliser.normalize(candidates), strict=True):
        is_folded[ord(character)] = normal_form != META + character  # the normaliser puts ▁ in front
    return is_folded
