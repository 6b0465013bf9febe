"""Token files of numbered text, and the tokenizers of `helpers/vocabularies.py`."""

from __future__ import annotations

from helpers.numbered import folder, four, tokenizer
from helpers.vocabularies import config, domains, english, restricted, small, vocabulary, whole

__all__ = [
    "config",
    "domains",
    "english",
    "folder",
    "four",
    "restricted",
    "small",
    "tokenizer",
    "vocabulary",
    "whole",
]
