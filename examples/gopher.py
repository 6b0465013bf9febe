"""Quality filters by rule, for `--reader examples/gopher.py:keep`: a record that a rule drops is quarantined.

Rules and limits are those of Gopher (arXiv 2112.11446, tables A1 and A2). They count words; here a Han character is one. Change
them to your text: 50 words drop most reviews in Chinese.
"""

from __future__ import annotations

import re

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(f"[{HAN}]|[^\\W_{HAN}]+")
LATIN = re.compile(f"[^\\W_{HAN}]+")
ELLIPSIS = re.compile(r"…+|\.{3,}|。{3,}")


def keep(record: dict) -> dict | None:
    """Return a record with the keys of section `data`, or None to leave it out."""
    return record if passes(record["text"]) else None


def passes(text: str) -> bool:
    """Return True if no rule drops a text."""
    words, latin = len(WORD.findall(text)), LATIN.findall(text)
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    share = lambda chosen: sum(map(chosen, lines)) / max(len(lines), 1)  # noqa: E731
    return (
        50 <= words <= 100_000
        and (not latin or 3 <= sum(map(len, latin)) / len(latin) <= 10)
        and (text.count("#") + len(ELLIPSIS.findall(text))) / words <= 0.1
        and share(lambda line: line.endswith(("…", "...", "。。。"))) <= 0.3
        and share(lambda line: line.startswith(tuple("•●○■□▪▫◦‣⁃*-"))) <= 0.9
        and 1 - len(set(lines)) / max(len(lines), 1) <= 0.3  # lines that occurred before
    )
