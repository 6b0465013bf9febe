"""Pairs of a Chinese text and its English original, from gettext catalogues, JSON files and pages of documentation."""

from __future__ import annotations

import gettext
import io
import json
import re
from collections.abc import Iterator
from typing import Any

_HAN = re.compile("[\u4e00-\u9fff]")
_WORD = re.compile("[A-Za-z]{2}")
_IDENTIFIER = re.compile(r"[a-z0-9]+(?:[_.-][a-z0-9]+)+")
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_CUTS = (re.compile(r"\n(?=#+ )"), re.compile(r"\n\s*\n"))
"""Where a page is cut into parts: before headings, and these parts at blank lines."""


def catalogue_pairs(catalogue: bytes) -> Iterator[tuple[str, str]]:
    """Yield the (zh, en) pairs of a gettext catalogue whose translation has Han characters and whose original has words."""
    translations = gettext.GNUTranslations(io.BytesIO(catalogue))
    for key, value in translations._catalog.items():  # type: ignore[attr-defined]
        original = key[0] if isinstance(key, tuple) else key  # (singular, plural form) when it has plurals
        yield from _pair(value, original.rpartition("\x04")[2])  # without the context, which ends with \x04


def json_pairs(chinese: bytes, english: bytes) -> Iterator[tuple[str, str]]:
    """Yield the (zh, en) pairs of texts under the same keys of two JSON files, if the sides have Han characters and words."""
    originals = dict(_texts(json.loads(english)))
    for keys, text in _texts(json.loads(chinese)):
        yield from _pair(text, originals.get(keys, ""))


def page_pairs(chinese: bytes, english: bytes) -> Iterator[tuple[str, str]]:
    """Yield the (zh, en) pairs of the paragraphs of a Markdown page, or of larger parts, such as sections, where the languages have
    different numbers of paragraphs. Pairs without Han characters or without English words are left out."""
    translation, original = (_FRONT_MATTER.sub("", page.decode().replace("\r\n", "\n")) for page in (chinese, english))
    for pair in _parts(translation, original, *_CUTS):
        yield from _pair(*pair)


def _pair(chinese: str, english: str) -> Iterator[tuple[str, str]]:
    """Yield the pair if the Chinese side has Han characters, and the English side words and is no identifier; else nothing."""
    chinese, english = chinese.strip(), english.strip()
    if _HAN.search(chinese) and _WORD.search(english) and not _IDENTIFIER.fullmatch(english):
        yield chinese, english


def _texts(tree: dict[str, Any], keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield pairs of the keys, from the outside in, and of a text that stands there in nested JSON objects."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _texts(value, (*keys, key))
        else:
            yield (*keys, key), str(value)


def _parts(chinese: str, english: str, *cuts: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of the parts of a text and of its translation. cuts: patterns of the places to cut at, from large parts to small
    ones. A pattern that gives unequally many parts on the two sides is left out there."""
    if not cuts:
        yield chinese, english
        return
    cut, *finer_cuts = cuts
    chinese_parts, english_parts = cut.split(chinese), cut.split(english)
    has_pairs = len(chinese_parts) == len(english_parts)
    for pair in zip(chinese_parts, english_parts, strict=True) if has_pairs else [(chinese, english)]:
        yield from _parts(*pair, *finer_cuts)
