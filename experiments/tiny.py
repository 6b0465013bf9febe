"""A tiny run from text to checkpoint, in seconds: real tokenizer, real data preparation, a network of three layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.prepare.prepare import prepare

STEPS, SAVED_AT = 30, 15

TINY_WORDS = {
    "en": "the cat dog bird sees hears likes a small old red green house tree river and then".split(),  # noqa: SIM905
    "zh": "今天 天气 不错 我们 去 公园 看 花 他 说 你好 中国 人民 希望 新年 快乐".split(),  # noqa: SIM905
    "code": "x y total item return if for in range print while True None def add left right".split(),  # noqa: SIM905
}

TINY_ROWS = [
    {"order": 1, "rows": 2000, "width": 8},
    {"order": 2, "rows": 5000, "width": 8},
    {"order": 2, "rows": 700, "width": 8, "kind": "own"},
]
"""Entries of `model.rows` for the tiny network."""


def write_text(path: Path, documents: int = 120) -> None:
    """Short documents of three domains; each word is mostly followed by the one after it, so that there is something to learn."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(documents):
            for name, words in TINY_WORDS.items():
                place, text = int(rng.integers(len(words))), []
                for _ in range(int(rng.integers(8, 40))):
                    text.append(words[place])
                    place = (place + 1 if rng.random() < 0.8 else int(rng.integers(len(words)))) % len(words)
                record = {"domain": name, "text": ("" if name == "zh" else " ").join([*text, str(i)])}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


def tiny_tree(data: Path) -> dict[str, Any]:
    """The configuration as a tree to change and to write."""
    return {
        "name": "tiny",
        "model": {
            "hidden": 24,
            "ffn": 32,
            "heads": 2,
            "dense_layers": 1,
            "rre_layers": 2,
            "experts_per_domain": 2,
            "seq_length": 32,
            "slot_rows": 640,
        },
        "domains": [
            {"name": "zh", "language": "zh", "slot": "zh"},
            {"name": "en", "language": "en", "slot": "en"},
            {"name": "code", "format": "code", "language": "python", "slot": "en"},
        ],
        "vocabulary": {"english_pieces": 300},
        "data": {
            "path": str(data),
            "domains_per_step": 2,
            "held_out": 0.1,
            "max_overlap": 1.0,
            "min_held_out_tokens": 1,
            "shuffle": "permutation",  # the one with which tests/reference/computed.json was computed
        },
        "train": {
            "steps": STEPS,
            "batch_size": 4,
            "eval_interval": STEPS,
            "eval_batches": 2,
            "checkpoint_interval": SAVED_AT,
            "keep_checkpoints": 2,
            "log_interval": 5,
            "optimizer": {"peak_lr": 1e-2, "end_lr": 1e-3, "warmup_steps": 5, "decay_steps": 100},
        },
    }


def tiny_config(data: Path, **sections: dict[str, Any]) -> Config:
    """`sections` override keys of the sections they name."""
    tree = tiny_tree(data)
    for name, keys in sections.items():
        tree[name] = tree.get(name, {}) | keys
    return parse_config(tree)


def prepare_tiny(folder: Path) -> None:
    """Write text and its prepared data into a folder: `text.jsonl` and `prepared`."""
    write_text(folder / "text.jsonl")
    prepare(tiny_config(folder / "prepared"), [folder / "text.jsonl"], folder / "prepared")
