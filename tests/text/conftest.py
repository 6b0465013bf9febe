"""The tokenizers of `helpers/vocabularies.py`, and PanGu-α's own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from helpers.vocabularies import config, domains, english, restricted, small, vocabulary, whole

__all__ = ["config", "domains", "english", "restricted", "small", "vocabulary", "whole"]


@pytest.fixture(scope="session")
def pangu_alpha():
    """pcl_pangu's own tokenizer, loaded from its file: importing the package pulls in a training framework."""
    folder = Path(importlib.util.find_spec("pcl_pangu").submodule_search_locations[0]) / "tokenizer"
    spec = importlib.util.spec_from_file_location("tokenization_jieba", folder / "tokenization_jieba.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.JIEBATokenizer(str(folder / "bpe_4w_pcl/vocab"))
