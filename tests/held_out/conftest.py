from __future__ import annotations

from helpers.numbered import folder, four, tokenizer
from helpers.trainers import trainer

__all__ = ["folder", "four", "tokenizer", "trainer"]
