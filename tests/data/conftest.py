"""A tokenizer of a few hundred English pieces, small enough to build in a test."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_sigma.config import Config, parse_config
from pangu_sigma.data.sentencepieces import alpha_model, learn_english
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.data.vocabulary import Vocabulary, choose_rows
from pangu_sigma.domains import Domains, domains_of

DOMAINS = [
    {"name": "zh", "language": "zh", "slot": "zh"},
    {"name": "en", "language": "en", "slot": "en"},
    {"name": "bilingual", "format": "bilingual", "language": "mixed", "slot": "bilingual"},
    {"name": "code", "format": "code", "language": "python", "slot": "en"},
]

ENGLISH = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.\n\n    Indented text, with  two blanks.\n",
    "def add(left, right):\n    return left + right\n\n\nfor item in range(10):\n    print(add(item, 1))\n",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.\n",
] * 20


def tiny_config(**model: int) -> Config:
    """Four domains of every kind in three slots; `model` overrides keys of the model section."""
    shape = {"hidden": 8, "ffn": 8, "heads": 1, "dense_layers": 1, "rre_layers": 1, "slot_rows": 50_000}
    return parse_config(
        {
            "name": "test",
            "model": shape | model,
            "domains": DOMAINS,
            "vocabulary": {"english_pieces": 300},
            "data": {"held_out": 0.2},
        }
    )


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
