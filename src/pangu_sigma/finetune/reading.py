"""A task's file, read and counted: nothing of it is cut, left out or skipped without being told."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pangu_sigma.config import Config
from pangu_sigma.data.documents import Rejected, check_input, read_lines
from pangu_sigma.data.quarantine import Quarantine, format_reasons
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import DataError
from pangu_sigma.finetune.batches import TaskSamples
from pangu_sigma.finetune.spelling import Spelled, Speller, TooLong
from pangu_sigma.finetune.talks import Talk, parse_talk
from pangu_sigma.sealed import fingerprint

logger = logging.getLogger(__name__)


@dataclass
class Account:
    """The account of a domain's lines. A line has a sample for each of its answers.

    cut: samples whose prompts were cut. left_out: samples that are too long, by reason. tokens, counted: ids of the samples, and
    those that count in the loss. sequences: number of sequences that they fill.
    """

    lines: int = 0
    samples: int = 0
    cut: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    counted: int = 0
    sequences: int = 0

    def take(self, sample: Spelled) -> None:
        """Count a sample."""
        self.samples += 1
        self.cut += sample.cut
        self.tokens += len(sample.ids_T)
        self.counted += sample.counted


@dataclass
class TaskFile:
    """What a file of a task came to.

    samples: those of each domain. accounts: by the names of the domains that its lines have. skipped: lines that cannot be used, by
    reason, and examples, file:offset and detail of the first line of each. xxh3_128: hash of the file.
    """

    path: Path
    config: Config
    tokenizer: Tokenizer
    samples: list[list[Spelled]]
    accounts: dict[str, Account]
    skipped: dict[str, int]
    examples: dict[str, str]
    xxh3_128: str

    @property
    def domains(self) -> list[str]:
        """Names of the domains that have samples, in the configuration's order."""
        names = [domain.name for domain in self.config.domains]
        return [name for name, own in zip(names, self.samples, strict=True) if own]

    @cached_property
    def sequences(self) -> TaskSamples:
        """The samples in their sequences."""
        return TaskSamples(self.config, self.samples, self.tokenizer)

    def hashes(self) -> dict[str, str]:
        """The file by its path, its hash, and that of its samples, as `TaskSamples` has it."""
        return {"path": str(self.path), "xxh3_128": self.xxh3_128, "samples": self.sequences.hash}

    def facts(self) -> dict[str, Any]:
        """What is to be known of it, as values for JSON."""
        accounts = {name: asdict(account) for name, account in self.accounts.items()}
        return {**self.hashes(), "domains": accounts, "skipped": self.skipped, "examples": self.examples}


def read_task_file(path: Path, option: str, config: Config, tokenizer: Tokenizer, quarantine: Quarantine) -> TaskFile:
    """Read a file of prompts and responses, or of messages.

    option: what names it, for messages. quarantine: takes the lines that cannot be used, of this file and perhaps of others.
    Raises DataError for a file that cannot be read, or that has no sample that can be used.
    """
    assert config.finetune is not None
    check_input(path, option)
    domains, usual, speller = domains_of(config), config.finetune.domain, Speller(tokenizer, config)
    samples: list[list[Spelled]] = [[] for _ in domains]
    accounts: dict[str, Account] = {}
    skipped: Counter[str] = Counter()
    examples: dict[str, str] = {}
    with tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
        for item in read_lines(path, lambda line, at: parse_talk(line, domains, usual), bar.update, option):
            if isinstance(item, Rejected):
                quarantine.add(item)
                skipped[item.reason] += 1
                examples.setdefault(item.reason, f"{item.file}:{item.offset}: {item.detail}")
            else:
                account = accounts.setdefault(item.domain, Account())
                _spell(item, speller, domains.named(item.domain).index, samples, account, config)
    found = TaskFile(path, config, tokenizer, samples, accounts, dict(skipped), examples, fingerprint(path)["xxh3_128"])
    if not found.domains:
        left_out = sum((Counter(account.left_out) for account in accounts.values()), Counter[str]())
        why = "; ".join(f"{count:,} × {reason}" for reason, count in left_out.items())
        raise DataError(
            f"{option} {path}: has no sample that can be used"
            + (f": {why}; model.seq_length is {config.model.seq_length}" if why else "")
        )
    for name, account in accounts.items():
        account.sequences = found.sequences.counts[domains.named(name).index]
    return found


def _spell(
    talk: Talk, speller: Speller, index: int, samples: list[list[Spelled]], account: Account, config: Config
) -> None:
    account.lines += 1
    for before, text in talk.answers():
        try:
            sample = speller.spell(before, text, domains_of(config)[index])
        except TooLong as why:
            account.left_out[str(why)] = account.left_out.get(str(why), 0) + 1
        else:
            samples[index].append(sample)
            account.take(sample)


def format_file(facts: dict[str, Any]) -> str:
    """The table of a file's `facts`: what each domain has of it, and what was skipped and why."""
    heads = ("lines", "samples", "cut", "left out", "sequences", "tokens", "counted")
    rows = [f"{'domain':12} {' '.join(f'{head:>10}' for head in heads)}   {facts['path']}"]
    for name, own in facts["domains"].items():
        left_out = sum(own["left_out"].values())
        numbers = [own["lines"], own["samples"], own["cut"], left_out, own["sequences"], own["tokens"], own["counted"]]
        rows.append(f"{name:12} {' '.join(f'{number:10,}' for number in numbers)}")
        rows += [f"  left out: {count:,} × {reason}" for reason, count in own["left_out"].items()]
    return "\n".join([*rows, *([format_reasons(facts["skipped"], facts["examples"])] if facts["skipped"] else [])])
