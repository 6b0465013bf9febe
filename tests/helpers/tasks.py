"""A task for the tiny run: its file, and lines of prompts and responses in words that the run's English pieces know."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

TASK: dict[str, Any] = {
    "finetune": {"task": "test", "domain": "en", "epochs": 4, "cut": "messages"},
    "chat": {"system": "{content} and", "user": " {content} then", "assistant": " {content}", "stop": ["\n"]},
    "train": {"batch_size": 4, "optimizer": {"peak_lr": 2e-2, "end_lr": 1e-3}},
}
WORDS = "cat dog bird sees hears likes small old red green house tree".split()  # noqa: SIM905


def write_task(path: Path, **sections: dict[str, Any]) -> Path:
    """A task's file; `sections` override keys of the sections they name."""
    tree = {name: keys | sections.get(name, {}) for name, keys in TASK.items()}
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return path


def pairs(first: int, last: int) -> list[dict[str, str]]:
    """Lines of prompts, all different, and responses of two words, which follow from the prompt."""
    found = []
    for number in range(first, last):
        one, two = WORDS[number % 12], WORDS[(number // 12 + number) % 12]
        found.append({"prompt": f"the {one} {two}", "response": f"{two} {one}"})
    return found


def write_lines(path: Path, lines: Iterable[object]) -> Path:
    """A file of lines: texts as they are, everything else as JSON."""
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path
