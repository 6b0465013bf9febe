"""English text and a configuration of four kinds of domains, small enough to prepare in a test."""

from __future__ import annotations

from pangu_sigma.config import Config
from pangu_sigma.config_file import parse_config

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
            "data": {"held_out": 0.2, "max_overlap": 1.0, "min_held_out_tokens": 1},
        }
    )
