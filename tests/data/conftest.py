"""Token files of numbered text, and the tokenizers of `helpers/vocabularies.py`."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.numbered import EOT, FIRST, LENGTH, PAD, SAMPLES, VOCABULARY
from helpers.prepared import seal
from helpers.vocabularies import config, domains, english, restricted, small, vocabulary, whole

from pangu_sigma.data.indexed import write_tokens

__all__ = ["config", "domains", "english", "restricted", "small", "vocabulary", "whole"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokens")
    for name, samples, first in zip("abc", SAMPLES, FIRST, strict=True):
        text = list(range(first, first + samples * LENGTH + 3))
        (path / name).mkdir()
        for split in ("train", "held_out"):
            write_tokens(path / name / split, [text[:50], text[50:]])
    return seal(path)


@pytest.fixture(scope="module")
def tokenizer() -> SimpleNamespace:
    """Two slots that hold all ids, the second one in reverse."""
    rows = np.arange(VOCABULARY, dtype=np.int32)
    both = np.stack([rows, rows[::-1]])  # its own inverse
    surfaces = [b"x" * (token % 5) for token in range(VOCABULARY)]
    return SimpleNamespace(
        size=VOCABULARY,
        eot=EOT,
        pad=PAD,
        row_of=both,
        slot_rows=both,
        hash="numbered",
        vocabulary=SimpleNamespace(surfaces=surfaces),
    )


@pytest.fixture(scope="module")
def four(folder, tmp_path_factory) -> Path:
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("four") / "tokens")
    (copy / "d").mkdir()
    for split in ("train", "held_out"):
        write_tokens(copy / "d" / split, [list(range(10, 10 + 25 * LENGTH))])
    return seal(copy)
