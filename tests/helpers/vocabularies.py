"""Fixtures: a tokenizer of a few hundred English pieces, small enough to build in a test, and its slots."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.texts import ENGLISH, tiny_config

from pangu_sigma.config import Config
from pangu_sigma.domains import Domains, domains_of
from pangu_sigma.text.sentencepieces import alpha_model, train_english
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import Vocabulary, choose_rows


@pytest.fixture(scope="session")
def config() -> Config:
    return tiny_config()


@pytest.fixture(scope="session")
def domains(config: Config) -> Domains:
    return domains_of(config)


@pytest.fixture(scope="session")
def english() -> bytes:
    return train_english(ENGLISH, 300)


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
