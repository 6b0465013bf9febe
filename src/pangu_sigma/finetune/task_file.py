"""Reader of a fine-tuning task's file of samples, with counts of everything that is cut, left out or skipped."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pangu_sigma.bars import Bar
from pangu_sigma.config import Config
from pangu_sigma.data.prepare.quarantine import Quarantine, format_reasons
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import DataError, argument
from pangu_sigma.finetune.conversation import parse_conversation
from pangu_sigma.finetune.encoding import EncodedSample, SampleEncoder, TooLong
from pangu_sigma.finetune.task_batches import TaskSamples
from pangu_sigma.sealed import fingerprint
from pangu_sigma.text.documents import Rejected, check_input, read_lines
from pangu_sigma.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass
class SampleCounts:
    """Counts of a domain's lines and samples in a fine-tuning file. A line gives one sample for each of its answers.

    cut: number of samples with cut prompts. left_out: number of samples that are too long, by reason. tokens, counted: number of
    tokens of the samples, and of tokens in the loss. sequences: number of sequences that the samples fill.
    """

    lines: int = 0
    samples: int = 0
    cut: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    counted: int = 0
    sequences: int = 0

    def take(self, sample: EncodedSample) -> None:
        """Add a tokenized sample to the counts."""
        self.samples += 1
        self.cut += sample.cut
        self.tokens += len(sample.ids_T)
        self.counted += sample.counted


@dataclass
class TaskFile:
    """Contents of a fine-tuning task's file of samples, tokenized.

    samples: tokenized samples of each domain. accounts: counts by the domain's name. skipped: number of unusable lines by reason.
    examples: file, line and detail of the first such line by reason. xxh3_128: hash of the file.
    """

    path: Path
    config: Config
    tokenizer: Tokenizer
    samples: list[list[EncodedSample]]
    accounts: dict[str, SampleCounts]
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
        """Samples of the fine-tuning file packed into sequences."""
        return TaskSamples(self.config, self.samples, self.tokenizer)

    def hashes(self) -> dict[str, str]:
        """Return the fine-tuning file's path, the file's hash, and the hash of its `TaskSamples`."""
        return {"path": str(self.path), "xxh3_128": self.xxh3_128, "samples": self.sequences.hash}

    def facts(self) -> dict[str, Any]:
        """Return hashes and counts of the fine-tuning file as values for JSON."""
        accounts = {name: asdict(account) for name, account in self.accounts.items()}
        return {**self.hashes(), "domains": accounts, "skipped": self.skipped, "examples": self.examples}


def read_task_file(path: Path, option: str, config: Config, tokenizer: Tokenizer, quarantine: Quarantine) -> TaskFile:
    """Read a fine-tuning file of prompts and responses, or of messages.

    option: command-line option that names the file, for messages. quarantine: receives unusable lines. Raises DataError for a file
    that cannot be read, or has no usable sample.
    """
    assert config.finetune is not None
    check_input(path, option)
    domains, usual, encoder = domains_of(config), config.finetune.domain, SampleEncoder(tokenizer, config)
    samples: list[list[EncodedSample]] = [[] for _ in domains]
    accounts: dict[str, SampleCounts] = {}
    skipped: Counter[str] = Counter()
    examples: dict[str, str] = {}
    with Bar(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True) as bar:
        for item in read_lines(path, lambda line, at: parse_conversation(line, domains, usual), bar.update, option):
            if isinstance(item, Rejected):
                quarantine.add(item)
                skipped[item.reason] += 1
                examples.setdefault(item.reason, str(item))
                continue
            account, domain = accounts.setdefault(item.domain, SampleCounts()), domains.named(item.domain)
            account.lines += 1
            for before, text in item.answers():
                try:
                    sample = encoder.spell(before, text, domain)
                except TooLong as error:
                    account.left_out[str(error)] = account.left_out.get(str(error), 0) + 1
                else:
                    samples[domain.index].append(sample)
                    account.take(sample)
    file = TaskFile(path, config, tokenizer, samples, accounts, dict(skipped), examples, fingerprint(path)["xxh3_128"])
    if not file.domains:
        left_out = sum((Counter(account.left_out) for account in accounts.values()), Counter[str]())
        why = "; ".join(f"{count:,} × {reason}" for reason, count in left_out.items())
        raise DataError(
            f"{argument(option)} {path}: has no sample that can be used"
            + (f": {why}; model.seq_length is {config.model.seq_length}" if why else "")
        )
    for name, account in accounts.items():
        account.sequences = file.sequences.counts[domains.named(name).index]
    return file


def format_file(facts: dict[str, Any]) -> str:
    """Format a file's `facts` as a table: counts of each domain, and the reasons of skipped lines."""
    heads = ("lines", "samples", "cut", "left out", "sequences", "tokens", "counted")
    rows = [f"{'domain':12} {' '.join(f'{head:>10}' for head in heads)}   {facts['path']}"]
    for name, own in facts["domains"].items():
        left_out = sum(own["left_out"].values())
        numbers = [own["lines"], own["samples"], own["cut"], left_out, own["sequences"], own["tokens"], own["counted"]]
        rows.append(f"{name:12} {' '.join(f'{number:10,}' for number in numbers)}")
        rows += [f"  left out: {count:,} × {reason}" for reason, count in own["left_out"].items()]
    return "\n".join([*rows, *([format_reasons(facts["skipped"], facts["examples"])] if facts["skipped"] else [])])
