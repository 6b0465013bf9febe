"""The tokenizers of `helpers/vocabularies.py`."""

from __future__ import annotations

from helpers.vocabularies import config, domains, english, restricted, small, vocabulary, whole

__all__ = ["config", "domains", "english", "restricted", "small", "vocabulary", "whole"]
