"""A tokenizer of a few hundred English pieces, small enough to build in a test, and token files of numbered text."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.numbered import EOT, FIRST, LENGTH, PAD, SAMPLES, VOCABULARY
from helpers.prepared import seal
from helpers.texts import ENGLISH, tiny_config

from pangu_sigma.config import Config
from pangu_sigma.data.indexed import write_tokens
from pangu_sigma.data.sentencepieces import alpha_model, learn_english
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.data.vocabulary import Vocabulary, choose_rows
from pangu_sigma.domains import Domains, domains_of


@pytest.fixture(scope="session")
def config() -> Config:
    return tiny_config()


@pytest.fixture(scope="session")
def domains(config: Config) -> Domains:
    return domains_of(config)


@pytest.fixture(scope="session")
def english() -> bytes:
    return learn_english(ENGLISH, 300)


@pytest.fixture(scope="session")
def vocabulary(english: bytes) -> Vocabulary:
    return Vocabulary(alpha_model(), english)


@pytest.fixture(scope="session")
def whole(english: bytes) -> Tokenizer:
    """Every slot has a row for every id."""
    return Tokenizer.whole(alpha_model(), english, 3)


@pytest.fixture(scope="session")
def small(english: bytes, vocabulary: Vocabulary, domains: Domains) -> Tokenizer:
    """Slots of 8,192 rows, as in sigma_tiny, chosen by counts in which 训练 股 气 are rare."""
    counts = np.zeros(len(vocabulary), dtype=np.int64)
    counts[np.arange(20, 20_000)] = np.arange(20_000, 20, -1)
    rows = [choose_rows(vocabulary, domains.in_slot(slot), counts, 8192) for slot in range(3)]
    return Tokenizer(alpha_model(), english, np.stack(rows))


@pytest.fixture(scope="session")
def restricted(english: bytes, vocabulary: Vocabulary, domains: Domains) -> Tokenizer:
    """Slots of 600 rows, chosen without any counts."""
    counts = np.zeros(len(vocabulary), dtype=np.int64)
    rows = [choose_rows(vocabulary, domains.in_slot(slot), counts, 600) for slot in range(3)]
    return Tokenizer(alpha_model(), english, np.stack(rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokens")
    for name, samples, first in zip("abc", SAMPLES, FIRST, strict=True):
        text = list(range(first, first + samples * LENGTH + 3))
        for split in ("train", "held_out"):
            write_tokens(path / f"{name}.{split}", [text[:50], text[50:]])
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
    for split in ("train", "held_out"):
        write_tokens(copy / f"d.{split}", [list(range(10, 10 + 25 * LENGTH))])
    return seal(copy)
