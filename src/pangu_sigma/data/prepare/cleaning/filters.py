"""Quality filters by rule: a document beyond a limit of section `data.filters` is dropped, and counted by the rule's name.

Rules and usual limits are those of Gopher (arXiv 2112.11446, tables A1 and A2), C4 (1910.10683), FineWeb (2406.17557) and, for
code, PanGu-Coder (2207.11280); `min_letters` and `min_han` are ours. They count words; here a Han character is one, so that a limit
means about the same in Chinese and English. Gopher asks for stop words, which needs a list a language, and limits n-grams of six
lengths; we take the longest, 10, because shorter ones are frequent among Han characters (our choice).
"""

from __future__ import annotations

import ast
import functools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.data.prepare.cleaning.shingles import HashedWords, hash_words
from pangu_sigma.domains import Domain
from pangu_sigma.text.documents import Document
from pangu_sigma.text.segmentation import HAN

_GRAM = 10
_HAN = re.compile(f"[{HAN}]")
_VISIBLE = re.compile(r"\S")
_LETTER = re.compile(r"[^\W\d_]")
_NO_WORD = re.compile(r"[\W_]+")
_LATIN = re.compile(f"[^\\W_{HAN}]+")
_ELLIPSIS = re.compile(r"…+|\.{3,}|。{3,}")
_ENDS = tuple(".!?。！？…;；:：\"'”’」』)）》")
_BULLETS = tuple("•●○■□▪▫◦‣⁃*-")


class Text:
    """Text of a document, with what several rules count in it, counted once."""

    def __init__(self, text: str) -> None:
        self.text = text

    @functools.cached_property
    def lines(self) -> list[str]:
        """Lines with a visible character, without blanks around."""
        return [line for line in map(str.strip, self.text.split("\n")) if line]

    @functools.cached_property
    def words(self) -> HashedWords:
        """Runs of letters and digits, and Han characters."""
        return hash_words(_NO_WORD.sub(" ", self.text), han_alone=True)


class FilterRule(NamedTuple):
    """Rule: how a text is measured, in which sense the limit is one, and for which domains."""

    measure: Callable[[Text], float | None]
    sense: Literal["least", "most", "below"]
    domains: Literal["text", "zh", "code", "python"] = "text"

    def drops(self, text: Text, limit: float) -> bool:
        """Return True if a text is beyond the limit."""
        value = self.measure(text)
        if value is None:
            return False
        return {"least": value < limit, "most": value > limit, "below": value >= limit}[self.sense]

    def holds_for(self, domain: Domain) -> bool:
        """Return True for the domains of the rule."""
        if domain.format == "code":
            return self.domains == "code" or self.domains == domain.language
        return self.domains == "text" or self.domains == domain.language


@dataclass(frozen=True)
class Filters:
    """Filters of a configuration. limits: those that are set, by the names of their rules, in the order of FILTER_RULES."""

    limits: dict[str, float]

    @classmethod
    def of(cls, config: Config) -> Filters:
        """Return the filters of section `data.filters`."""
        values = config.data.filters.model_dump()
        return cls({name: values[name] for name in FILTER_RULES if values[name] is not None})

    def reason(self, document: Document, domain: Domain) -> str | None:
        """Return the name of the first rule that drops a document; None: it stays."""
        limits = {name: limit for name, limit in self.limits.items() if FILTER_RULES[name].holds_for(domain)}
        if not limits:
            return None
        text = Text("\n".join(text for _, text in document.segments))
        return next((name for name, limit in limits.items() if FILTER_RULES[name].drops(text, limit)), None)


def parses(text: str) -> bool:
    """Return True if text is Python 3, for the running version. Text too deeply nested for the parser is not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def mean_line(text: str) -> float:
    """Return the mean length of the lines of code, blank ones too, in characters."""
    lines = text.split("\n")
    return (len(text) - len(lines) + 1) / len(lines)


def longest_line(text: str) -> int:
    """Return the length of the longest line in characters."""
    return max(map(len, text.split("\n")))


def _count(text: Text) -> int:
    return len(text.words.hashes)


def _mean_word(text: Text) -> float | None:
    words = _LATIN.findall(text.text)
    return sum(map(len, words)) / len(words) if words else None


def _symbols(text: Text) -> float:
    return (text.text.count("#") + len(_ELLIPSIS.findall(text.text))) / max(_count(text), 1)


def _share_of_lines(chosen: Callable[[str], bool]) -> Callable[[Text], float]:
    return lambda text: sum(map(chosen, text.lines)) / max(len(text.lines), 1)


def _share_of_characters(pattern: re.Pattern[str]) -> Callable[[Text], float]:
    return lambda text: len(pattern.findall(text.text)) / max(len(_VISIBLE.findall(text.text)), 1)


def _ends_with_ellipsis(line: str) -> bool:
    return line.endswith(("…", "...", "。。。"))


def _again(text: Text) -> list[str]:
    """Return the lines that are copies of an earlier one."""
    seen: set[str] = set()
    return [line for line in text.lines if line in seen or seen.add(line)]  # type: ignore[func-returns-value]


def _duplicate_line_characters(text: Text) -> float:
    return sum(map(len, _again(text))) / max(sum(map(len, text.lines)), 1)


def _duplicate_grams(text: Text) -> float:
    """Return the share of the words' characters that are in an n-gram which is a copy of an earlier one; each counts once."""
    if _count(text) < _GRAM:
        return 0.0
    grams = text.words.grams(_GRAM)
    copies = np.ones(len(grams), bool)
    copies[np.unique(grams, return_index=True)[1]] = False
    begun = np.cumsum(np.concatenate([copies, np.zeros(_GRAM, bool)]))
    inside = begun[: _count(text)] > np.concatenate([np.zeros(_GRAM, int), begun])[: _count(text)]
    return float(text.words.lengths[inside].sum() / text.words.lengths.sum())


FILTER_RULES: dict[str, FilterRule] = {
    "min_characters": FilterRule(lambda text: len(text.text), "least"),
    "max_characters": FilterRule(lambda text: len(text.text), "most"),
    "min_words": FilterRule(_count, "least"),
    "max_words": FilterRule(_count, "most"),
    "min_mean_word": FilterRule(_mean_word, "least"),
    "max_mean_word": FilterRule(_mean_word, "most"),
    "max_symbols": FilterRule(_symbols, "most"),
    "max_ellipsis_lines": FilterRule(_share_of_lines(_ends_with_ellipsis), "most"),
    "max_bullet_lines": FilterRule(_share_of_lines(lambda line: line.startswith(_BULLETS)), "most"),
    "min_ended_lines": FilterRule(_share_of_lines(lambda line: line.endswith(_ENDS)), "least"),
    "min_letters": FilterRule(_share_of_characters(_LETTER), "least"),
    "min_han": FilterRule(_share_of_characters(_HAN), "least", "zh"),
    "max_duplicate_lines": FilterRule(lambda text: len(_again(text)) / max(len(text.lines), 1), "most"),
    "max_duplicate_line_characters": FilterRule(_duplicate_line_characters, "most"),
    "max_duplicate_grams": FilterRule(_duplicate_grams, "most"),
    "max_code_bytes": FilterRule(lambda text: len(text.text.encode("utf-8", "surrogatepass")), "below", "code"),
    "max_code_mean_line": FilterRule(lambda text: mean_line(text.text), "below", "code"),
    "max_code_line": FilterRule(lambda text: longest_line(text.text), "below", "code"),
    "code_parses": FilterRule(lambda text: parses(text.text), "least", "python"),
}
"""Rules by the name of their key in section `data.filters`, cheap ones first."""
