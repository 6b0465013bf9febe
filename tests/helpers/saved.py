"""Checkpoints that a test writes in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pangu_sigma.checkpoint.checkpoint import Identity
from pangu_sigma.checkpoint.parts import Files
from pangu_sigma.checkpoint.saver import Saver


def save_checkpoint(root: Path, step: int, files: Files, state: dict[str, Any], identity: Identity, keep: int) -> Path:
    """Write a checkpoint at once, in one process, and return its folder."""
    with Saver(root, identity, keep) as saver:
        return saver.save(step, files, state)
