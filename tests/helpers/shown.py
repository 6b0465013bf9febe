"""What a reader of the pages has when a page begins, in small: what the quickstart leaves, and the files that pages name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml
from helpers.tasks import pairs, write_lines

import pangu_sigma as ps
from experiments.tiny import write_text
from pangu_sigma.config_file import config_path, read_tree

_LAYERS = {"hidden": 24, "ffn": 32, "heads": 2, "dense_layers": 1, "rre_layers": 1}
SIZES = {
    "model": _LAYERS | {"seq_length": 64, "slot_rows": 700},
    "vocabulary": {"english_pieces": 300},
    "data": {"held_out": 0.1, "max_overlap": 1.0, "min_held_out_tokens": 1},
    "train": {"steps": 2, "eval_interval": 2, "eval_batches": 2, "log_interval": 1},
}
"""Keys in which the configurations of the pages differ from the shipped ones."""


def write_config(folder: Path, file: str, changes: dict[str, Any], name: str = "sigma_tiny") -> None:
    """Write a shipped configuration with these sizes, then with changes. A file in the current folder wins over a shipped name."""
    tree = changed(changed(read_tree(config_path(name)), SIZES), changes)
    (folder / file).write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")


def changed(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A configuration of which sections get other keys, and lists more entries."""
    new = {key: tree.get(key, {}) | value for key, value in changes.items() if isinstance(value, dict)}
    new |= {key: [*tree[key], *value] for key, value in changes.items() if isinstance(value, list)}
    return tree | changes | new


def write_folder(folder: Path) -> None:
    """Write text, configurations, prepared data, a run, and the runs that a page compares, which are the same one."""
    for name in ("sigma_tiny", "sigma_paper_tiny"):
        write_config(folder, name, {}, name)
    write_config(folder, "mine.yaml", {"name": "mine", "data": {"path": "data/mine"}})
    write_texts(folder)
    config = ps.load_config(folder / "sigma_tiny", {"data.path": str(folder / "data/prepared")})
    ps.prepare_data(config, input=[folder / "mine.jsonl"])
    ps.train(config, folder / "runs/sigma_tiny").export(folder / "exports/sigma_tiny")
    for name in ("a", "b", *(f"{run}_{seed}" for run in "ab" for seed in (1, 2, 3))):
        (folder / "runs" / name).symlink_to("sigma_tiny")


def write_texts(folder: Path) -> None:
    """Write the text of every file of lines that a page names."""
    write_text(folder / "mine.jsonl")
    records = [json.loads(line) for line in (folder / "mine.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = {name: [each["text"] for each in records if each["domain"] == name] for name in ("zh", "en")}
    both = [{"domain": "bilingual", "text": {"zh": zh, "en": en}} for zh, en in zip(*texts.values(), strict=True)]
    for name in ("mine", "four"):
        write_lines(folder / f"{name}.jsonl", [*records, *both])
    for name in ("notes", "law"):
        write_lines(folder / f"{name}.jsonl", [{"domain": name, "text": text} for text in texts["en"]])
    lines = pairs(0, 30)
    write_lines(folder / "train.jsonl", lines[:24])
    write_lines(folder / "dev.jsonl", lines[24:])
    (folder / "key.txt").write_text("a-key-of-a-page\n")
    shutil.copytree(Path(__file__).parents[2] / "examples", folder / "examples")
    for corpus in ("wudao", "skypile", "edu"):
        (folder / corpus).mkdir()
    wudao = [{"title": "今天", "content": text, "dataType": "科技"} for text in texts["zh"]]
    (folder / "wudao/part.json").write_text(json.dumps(wudao, ensure_ascii=False), encoding="utf-8")
    write_lines(folder / "skypile/head.jsonl", [{"text": text} for text in texts["zh"]])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts["zh"]}), folder / "edu/part.parquet")
