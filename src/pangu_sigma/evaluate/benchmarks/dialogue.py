"""Benchmark of open dialogue: distinct-1 and distinct-2 of the answers, and self-chats for people to read.

Input: prompts.jsonl, one {"prompt": first message} a line. The paper's dialogues were judged by people; no number here does that.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.evaluate.benchmarks.prompt_runner import PromptRunner
from pangu_sigma.evaluate.benchmarks.task_lines import read_rows, task_file
from pangu_sigma.evaluate.benchmarks.task_result import TaskResult
from pangu_sigma.evaluate.benchmarks.text_metrics import distinct
from pangu_sigma.generate.chat_template import ChatTemplate, Role
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.sampling import Sampling

logger = logging.getLogger(__name__)

_NAME = "prompts.jsonl"
_PUBLISHED = 'your own first turns, one {"prompt": …} a line; there is no published file'


def run(
    engine: Engine,
    domain: str,
    folder: Path,
    limit: int | None = None,
    transcripts: Path | None = None,
    turns: int = 8,
    max_new_tokens: int | None = None,
    temperature: float = 0.9,
) -> TaskResult:
    """Run the dialogue benchmark: distinct-1 and -2 over a domain's answers to first messages, which a file in `folder` has.

    limit: maximum number of first messages, from the beginning of the file.
    transcripts: Markdown file for chats of the model with itself, one for each first message. turns: messages of such a chat, with
    the first one; fewer if the model gives an empty answer. max_new_tokens: maximum tokens of a message; by default 128, or half
    of model.seq_length if less. temperature: our choice, with a top_p of 0.9.
    Messages are formatted by the templates of `chat:` in the configuration. A chat that does not fit loses its oldest messages.
    Raises DataError for a file that is missing or has no usable line, ConfigError for invalid options.
    """
    if turns < 2:
        raise ConfigError(f"turns={turns} is not allowed: 2 or more, because the first one is given")
    rows, skipped = read_rows(task_file(folder, [_NAME], _PUBLISHED), {"prompt": str}, check=_fault)
    config = engine.decoder.config
    template = ChatTemplate.of(domains_of(config).named(domain), config.chat)
    runner = PromptRunner(engine, domain, 128, max_new_tokens, Sampling(temperature, top_p=0.9), template.stop)
    chats = [[row["prompt"]] for row in rows[:limit]]
    _go_on(runner, template, chats, 1)
    answers = [chat[1] for chat in chats if len(chat) > 1]
    if empty := len(chats) - len(answers):
        logger.warning("%d of %d answers are empty", empty, len(chats))
    truncated = runner.truncated
    if transcripts is not None:
        for said in range(2, turns):
            _go_on(runner, template, chats, said)
        _write(transcripts, f"{config.name}, domain {domain}", chats, turns)
    return TaskResult({f"distinct_{n}": distinct(answers, n) for n in (1, 2)}, len(chats), skipped, truncated)


def _go_on(runner: PromptRunner, template: ChatTemplate, chats: Sequence[list[str]], said: int) -> None:
    """Add a message to each chat of `said` messages. In the template the speaker is the assistant, and the other side the user."""
    open_chats = [chat for chat in chats if len(chat) == said]
    before = runner.truncated
    prompts = [runner.first_fitting(_prompts(template, chat)) for chat in open_chats]
    if left_out := runner.truncated - before:
        logger.warning("in %d of %d chats the oldest messages were left out, to fit", left_out, len(open_chats))
    answers = runner.answers(prompts, what=f"message {said + 1}", passed_over=said - 1)
    for chat, (answer,) in zip(open_chats, answers, strict=True):
        if answer.strip():
            chat.append(answer.strip())


def _prompts(template: ChatTemplate, chat: Sequence[str]) -> list[str]:
    """Return the chat as a prompt for its next speaker, then shorter prompts without the oldest messages."""
    roles: list[Role] = [("user", "assistant")[(len(chat) - number) % 2] for number in range(1, len(chat) + 1)]
    messages = list(zip(roles, chat, strict=True))
    return [template.prompt(messages[first:]) for first in range(len(messages))]


def _write(path: Path, title: str, chats: Sequence[Sequence[str]], turns: int) -> None:
    lines = [f"# Chats of a model with itself: {title}", "", "The first message of each was given to it."]
    for number, chat in enumerate(chats, 1):
        lines += ["", f"## {number}"]
        for turn, text in enumerate(chat):
            paragraph = text.replace("\n", "  \n")
            lines += ["", f"**{'AB'[turn % 2]}:** {paragraph}"]
        if len(chat) < turns:
            lines += ["", f"*Nothing more was said by {'AB'[len(chat) % 2]}.*"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _fault(row: dict) -> str:
    return "" if row["prompt"].strip() else "prompt: a text expected, found none"
