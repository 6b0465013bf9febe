"""Cut text into runs: which part PanGu-α's model reads and which part the English pieces read.

A run for PanGu-α is already cut into words by jieba, exactly as PanGu-α did it, because jieba is far slower than
everything after it (0.3 MB/s): `runs_of` is done once for each document, in several processes, and what follows only
sees runs. Nothing here knows ids.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

SPACE, NEWLINE = "\u2582", "\u2583"
"""What PanGu-α's vocabulary writes for a space and a newline; its blank only separates words."""

TO_ALPHA = str.maketrans({" ": SPACE, "\n": NEWLINE})

HAN = "\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Han characters and radicals, as the inside of a regular expression's [ ]."""

_MARKS = "\u3000-\u303f\ufe30-\ufe4f\uff00-\uffef“”‘’—…·"
"""CJK punctuation, full-width forms, and the quotes and dashes that Chinese text shares with Latin text."""

_CHINESE_RUN = re.compile(f"[{_MARKS}]{{0,8}}[{HAN}](?:[\\W\\d_]*[{HAN}{_MARKS}])*")
_HAN = re.compile(f"[{HAN}]")
_LATIN_WORD = re.compile(r"[A-Za-z]+")

ONE_PROCESS_BYTES = 200_000
"""Below this much text a second process costs more than it brings."""


class Run(NamedTuple):
    """A piece of text and who reads it. `text` of a run with `alpha` is jieba's words, joined with blanks."""

    alpha: bool
    text: str


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
        return (Run(True, words(text)),)
    if language != "mixed":
        return (Run(False, text),)
    runs, position = [], 0
    for match in _CHINESE_RUN.finditer(text):
        if match.start() > position:
            runs.append(Run(False, text[position : match.start()]))
        runs.append(Run(True, words(match.group())))
        position = match.end()
    if position < len(text):
        runs.append(Run(False, text[position:]))
    return tuple(runs)


def is_chinese(text: str) -> bool:
    """More Han characters than Latin words: the language tag that a text gets when nobody stated its language."""
    return len(_HAN.findall(text)) > len(_LATIN_WORD.findall(text))


def words(text: str) -> str:
    """PanGu-α's input to SentencePiece: jieba's words (HMM on), blanks and newlines replaced, joined with blanks."""
    return " ".join(word.translate(TO_ALPHA) for word in _jieba().cut(text, cut_all=False))


@functools.cache
def _jieba() -> Any:
    """jieba's default dictionary in a tokenizer of our own, so that another user's `add_word` changes nothing here."""
    import jieba

    jieba.setLogLevel(logging.WARNING)
    tokenizer = jieba.Tokenizer()
    tokenizer.initialize()
    return tokenizer


def all_runs(texts: list[tuple[str, str]]) -> Iterator[tuple[Run, ...]]:
    """`runs_of` of every (text, language), in order, on all cores when there is enough text for jieba."""
    slow = sum(len(text) for text, language in texts if language in ("zh", "mixed"))
    processes = len(os.sched_getaffinity(0))
    if slow * 3 < ONE_PROCESS_BYTES or processes == 1:
        yield from map(_runs_of_pair, texts)
        return
    # spawn: a fork of a process that has started MindSpore's threads may hang
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(_runs_of_pair, texts, chunksize=8)


def _runs_of_pair(pair: tuple[str, str]) -> tuple[Run, ...]:
    return runs_of(*pair)
