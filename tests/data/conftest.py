"""Token files of numbered text, and the tokenizers of `helpers/vocabularies.py`."""

from __future__ import annotations

__all__ = [
    *("folder", "four", "tokenizer"),
    *("config", "domains", "english", "restricted", "small", "vocabulary", "whole"),
]
