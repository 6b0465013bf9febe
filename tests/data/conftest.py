"""A tokenizer of a few hundred English pieces, small enough to build in a test."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.texts import ENGLISH, tiny_config

from pangu_sigma.config import Config
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
def restricted(english: bytes, vocabulary: Vocabulary, domains: Domains) -> Tokenizer:
    """Slots of 600 rows, chosen without any counts."""
    counts = np.zeros(len(vocabulary), dtype=np.int64)
    rows = [choose_rows(vocabulary, domains.in_slot(slot), counts, 600) for slot in range(3)]
    return Tokenizer(alpha_model(), english, np.stack(rows))
