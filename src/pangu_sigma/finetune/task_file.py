"""Reader of a fine-tuning task's file of samples, with counts of everything that is cut, left out or skipped."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict, dataclass, field
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
from pangu_sigma.text.documents import Rejected
from pangu_sigma.text.json_lines import read_lines
from pangu_sigma.text.streams import check_input
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


@dataclass
class TaskFile:
    """Contents of a fine-tuning task's file of samples, tokenized.

    domains: names of the domains that have samples, in the configuration's order. samples: those of each domain of it. sequences:
    the samples, packed. accounts: counts by the domain's name. refused: unusable lines. xxh3_128: hash of the file.
    """

    path: Path
    domains: list[str]
    samples: list[list[EncodedSample]]
    sequences: TaskSamples
    accounts: dict[str, SampleCounts]
    refused: Quarantine
    xxh3_128: str

    def hashes(self) -> dict[str, str]:
        """Return the fine-tuning file's path, the file's hash, and the hash of its `TaskSamples`."""
        return {"path": str(self.path), "xxh3_128": self.xxh3_128, "samples": self.sequences.hash}

    def facts(self) -> dict[str, Any]:
        """Return hashes and counts of the fine-tuning file as values for JSON."""
        accounts = {name: asdict(account) for name, account in self.accounts.items()}
        skipped = {"skipped": dict(self.refused.counts), "examples": self.refused.examples}
        return {**self.hashes(), "domains": accounts, **skipped}


def read_task_file(path: Path, option: str, config: Config, tokenizer: Tokenizer, quarantine: Quarantine) -> TaskFile:
    """Read a fine-tuning file of prompts and responses, or of messages.

    option: command-line option that names the file, for messages. quarantine: receives unusable lines. Raises DataError for a file
    that cannot be read, or has no usable sample.
    """
    check_input(path, option)
    domains, usual, encoder = domains_of(config), config.tuning.domain, SampleEncoder(tokenizer, config)
    samples: list[list[EncodedSample]] = [[] for _ in domains]
    accounts, refused = dict[str, SampleCounts](), Quarantine(None)
    with Bar(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True) as bar:
        for item in read_lines(path, lambda line, at: parse_conversation(line, domains, usual), bar.update, option):
            if isinstance(item, Rejected):
                quarantine.add(item)
                refused.add(item)
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
                    account.samples += 1
                    account.cut += sample.cut
                    account.tokens += len(sample.ids_T)
                    account.counted += sample.counted
    if not any(samples):
        left_out = sum((Counter(account.left_out) for account in accounts.values()), Counter[str]())
        why = "; ".join(f"{count:,} × {reason}" for reason, count in left_out.items())
        raise DataError(
            f"{argument(option)} {path}: has no sample that can be used"
            + (f": {why}; model.seq_length is {config.model.seq_length}" if why else "")
        )
    sequences = TaskSamples(config, samples, tokenizer)
    for name, account in accounts.items():
        account.sequences = sequences.counts[domains.named(name).index]
    names = [domain.name for domain in domains if samples[domain.index]]
    return TaskFile(path, names, samples, sequences, accounts, refused, fingerprint(path)["xxh3_128"])


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
