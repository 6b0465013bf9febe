"""Samples of a fine-tuning file: its lines are parsed, tokenized and counted, with everything that is cut, left out or skipped.

A line is a prompt and its response, or the messages of a conversation, of which each answer is a sample. A prompt is tokenized as
in serving, then the answer, then <eot>: separately, because in generation a model reads the tokens of the prompt alone. A sample
that is too long is cut as the task says, but never its answer.

Shape suffix: T ids.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from pangu_sigma.bars import Bar
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.prepare.overview import format_reasons
from pangu_sigma.domains import Domain, Domains, domains_of
from pangu_sigma.errors import DataError, argument
from pangu_sigma.finetune.sequences import EncodedSample, TaskSamples
from pangu_sigma.generate.chat_template import ChatTemplate, Messages, Role, without_oldest
from pangu_sigma.results import aligned
from pangu_sigma.sealed import fingerprint
from pangu_sigma.text.documents import Rejected, RejectedLine, items_of
from pangu_sigma.text.inputs import check_input
from pangu_sigma.text.json_files import json_lines
from pangu_sigma.text.layout import json_object, known_domain, visible_text
from pangu_sigma.text.tokenizer import Tokenizer

_PAIR, _CONVERSATION = ("prompt", "response"), ("messages",)
_NEAR = 0.82
"""Likeness above which a key is a mistyped "domain": "domian" and "Domain" are, "subdomain" and "main" are not."""
_EXPECTED = '{"prompt": …, "response": …} or {"messages": [{"role": …, "content": …}, …]}'


@dataclass(frozen=True)
class Conversation:
    """Fine-tuning conversation in a domain; its last message is an answer."""

    domain: str
    messages: Messages

    def answers(self) -> Iterator[tuple[Messages, str]]:
        """Yield each answer with the messages before it."""
        for number, (role, text) in enumerate(self.messages):
            if role == "assistant":
                yield self.messages[:number], text


def parse_conversation(line: bytes, domains: Domains, default_domain: str) -> Conversation:
    """Parse a fine-tuning line: `{"prompt", "response"}` or `{"messages"}`, optionally with `domain`; other keys are ignored.

    default_domain: domain of a line that names none. Raises RejectedLine for any other line, and for a mistyped `domain`.
    """
    record = json_object(line)
    if "domain" not in record and (near := difflib.get_close_matches("domain", record, n=1, cutoff=_NEAR)):
        raise RejectedLine("unknown key", f"unknown key {near[0]!r}, nearest 'domain'")
    domain = known_domain(record["domain"], domains) if "domain" in record else default_domain
    keys = [key for key in (*_PAIR, *_CONVERSATION) if key in record]
    if keys == list(_PAIR):
        prompt, response = (visible_text(record[key], key) for key in _PAIR)
        return Conversation(domain, (("user", prompt), ("assistant", response)))
    if keys != list(_CONVERSATION):
        raise RejectedLine("wrong keys", f"the line has {', '.join(keys) or 'none of the keys'}; expected: {_EXPECTED}")
    return Conversation(domain, _messages(record["messages"]))


def _messages(value: Any) -> Messages:
    """Parse the messages of a line: a system message may be first, an answer must be last. Raises RejectedLine for other values."""
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise RejectedLine("messages not a list of objects", f"expected: {_EXPECTED}")
    messages: list[tuple[Role, str]] = []
    for number, message in enumerate(value):
        role = message.get("role")
        if role not in get_args(Role):
            raise RejectedLine(
                "unknown role", f"messages.{number}.role is {role!r}; expected: {', '.join(get_args(Role))}"
            )
        if role == "system" and number:
            raise RejectedLine("system message not the first", f"messages.{number}")
        messages.append((cast(Role, role), visible_text(message.get("content"), f"messages.{number}.content")))
    if len(messages) < 2 or messages[-1][0] != "assistant":
        raise RejectedLine("no answer at the end", "the last message must be the assistant's, after another one")
    if messages[0][0] == "assistant":
        raise RejectedLine("an answer to nothing", "messages.0 is the assistant's; it needs a prompt")
    return tuple(messages)


class TooLong(Exception):
    """Error of a fine-tuning sample that does not fit even when cut; the message says what is too long."""


class SampleEncoder:
    """Tokenizer of fine-tuning samples, with the chat template of the run's section `chat`."""

    def __init__(self, tokenizer: Tokenizer, config: Config):
        self._tokenizer, self._chat, self._cut = tokenizer, config.chat, config.tuning.cut
        self._max_tokens = config.model.seq_length + 1  # the last id is only predicted

    def encode_answer(self, before: Messages, text: str, domain: Domain) -> EncodedSample:
        """Tokenize an answer and the messages before it. Raises TooLong if the answer alone leaves no room for a prompt, or if
        the prompt cannot be cut to the room."""
        template = ChatTemplate.of(domain, self._chat)
        answer = [*self._tokenizer.encode(template.answer(text), domain), self._tokenizer.eot]
        room = self._max_tokens - len(answer)
        if room < 1:
            raise TooLong("the answer is too long")
        prompt, cut = self._prompt(template, before, domain, room)
        return EncodedSample(np.array([*prompt, *answer], np.int32), len(prompt), cut)

    def _prompt(self, template: ChatTemplate, before: Messages, domain: Domain, room: int) -> tuple[list[int], bool]:
        """Return the ids of the prompt that fit, and True if it was cut."""
        ids = self._tokenizer.prompt(template.prompt(before), domain)
        if len(ids) <= room:
            return ids, False
        if self._cut == "prompt":
            tags = 0 if domain.format == "text" else 1  # the beginning is cut, but for a language tag
            if room > tags:
                return [*ids[:tags], *ids[len(ids) - room + tags :]], True
        if self._cut == "messages":
            for _, messages in without_oldest(before):
                ids = self._tokenizer.prompt(template.prompt(messages), domain)
                if len(ids) <= room:
                    return ids, True
        raise TooLong("prompt and answer are too long")


@dataclass
class TaskFile:
    """Contents of a fine-tuning task's file. sequences: its samples, packed. facts: path, hashes, and counts of each domain's lines
    and samples, as values for JSON. A line gives one sample for each of its answers."""

    sequences: TaskSamples
    facts: dict[str, Any]
    unusable_lines: list[Rejected]


def read_task_files(
    train_file: Path, dev_file: Path | None, config: Config, tokenizer: Tokenizer
) -> dict[str, TaskFile]:
    """Read the training samples, "train_file", and the dev set, "dev_file", if there is one. Raises DataError, and ConfigError if
    they are the same."""
    training = read_task_file(train_file, "--train-file", config, tokenizer)
    if dev_file is None:
        return {"train_file": training}
    dev = read_task_file(dev_file, "--dev-file", config, tokenizer, training.sequences)
    if dev.sequences.hash == training.sequences.hash:
        raise ConfigError(
            f"{argument('--dev-file')} {dev_file} is the {argument('--train-file')}: its loss says nothing about new text; "
            "give other lines, or leave it out"
        )
    return {"train_file": training, "dev_file": dev}


def read_task_file(
    path: Path, option: str, config: Config, tokenizer: Tokenizer, training: TaskSamples | None = None
) -> TaskFile:
    """Read a fine-tuning file of prompts and responses, or of messages.

    option: command-line option that names the file, for messages. training: the training samples, if the file is a dev set; None
    for the training file. Raises DataError for a file that cannot be read, or has no usable sample.
    """
    check_input(path, option)
    domains, default_domain, encoder = domains_of(config), config.tuning.domain, SampleEncoder(tokenizer, config)
    samples: list[list[EncodedSample]] = [[] for _ in domains]
    accounts, unusable_lines = dict[str, dict[str, Any]](), list[Rejected]()
    with Bar(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True) as bar:

        def parse(line: bytes) -> Conversation:
            bar.update(len(line))
            return parse_conversation(line, domains, default_domain)

        for item in items_of(path, json_lines(path, option=option), parse):
            if isinstance(item, Rejected):
                unusable_lines.append(item)
                continue
            account = accounts.setdefault(item.domain, {**dict.fromkeys(_COUNTS, 0), "left_out": {}})
            account["lines"] += 1
            for before, text in item.answers():
                try:
                    sample = encoder.encode_answer(before, text, domains.named(item.domain))
                except TooLong as error:
                    account["left_out"][str(error)] = account["left_out"].get(str(error), 0) + 1
                    continue
                samples[domains.named(item.domain).index].append(sample)
                added = {"samples": 1, "cut": sample.cut, "tokens": len(sample.ids_T), "counted": sample.counted}
                account.update({key: account[key] + number for key, number in added.items()})
    counts = dict(Counter(line.reason for line in unusable_lines))
    examples = {line.reason: str(line) for line in reversed(unusable_lines)}  # the first line of each reason
    if not any(samples):
        left_out = sum((Counter(account["left_out"]) for account in accounts.values()), Counter[str]())
        why = "; ".join(f"{count:,} × {reason}" for reason, count in left_out.items())
        raise DataError(
            (f"{format_reasons(counts, examples)}\n" if unusable_lines else "")
            + f"{argument(option)} {path}: has no sample that can be used"
            + (f": {why}; model.seq_length is {config.model.seq_length}" if why else "")
        )
    sequences = TaskSamples(config, samples, tokenizer, training)
    for name, account in accounts.items():
        account["sequences"] = sequences.counts[domains.named(name).index]
    facts = {
        "path": str(path),
        "xxh3_128": fingerprint(path)["xxh3_128"],
        "samples": sequences.hash,
        "domains": accounts,
    }
    return TaskFile(sequences, {**facts, "skipped": counts, "examples": examples}, unusable_lines)


_COUNTS = ("lines", "samples", "cut", "sequences", "tokens", "counted")
"""Counts of a domain in a fine-tuning file. cut: samples with cut prompts. counted: tokens in the loss."""


def format_file(facts: dict[str, Any]) -> str:
    """Format a file's `facts` as a table: counts of each domain, and the reasons of samples left out and of skipped lines."""
    domains = facts["domains"].items()
    table = [["domain", *_COUNTS], *([name, *(f"{account[key]:,}" for key in _COUNTS)] for name, account in domains)]
    lines = aligned(table, "<>", facts["path"])
    for name, account in domains:
        lines += [f"{name}, left out: {count:,} × {reason}" for reason, count in account["left_out"].items()]
    return "\n".join([*lines, *([format_reasons(facts["skipped"], facts["examples"])] if facts["skipped"] else [])])
