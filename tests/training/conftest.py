from __future__ import annotations

from helpers.trainers import trainer

__all__ = ["trainer"]
