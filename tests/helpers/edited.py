"""Configurations of runs, edited so that they are those of the run all the same."""

from __future__ import annotations

from pathlib import Path

from pangu_sigma.checkpoint.model_files import CONFIG_FILE, write_config
from pangu_sigma.config_file import load_config


def edit_config(run: Path, changes: dict[str, str]) -> None:
    """Replace texts in a run's config.yaml, and write its hash anew."""
    text = (run / CONFIG_FILE).read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (run / CONFIG_FILE).write_text(text, encoding="utf-8")
    write_config(run, load_config(run / CONFIG_FILE), "run")
