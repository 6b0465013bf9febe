"""Parser of a fine-tuning file's lines: a prompt and its response, or the messages of a conversation."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast, get_args

from pangu_sigma.domains import Domains
from pangu_sigma.generate.chat_template import Role
from pangu_sigma.text.documents import RejectedLine, check_unique_keys, json_object, known_domain, visible_text

Messages = tuple[tuple[Role, str], ...]
"""Roles and texts of consecutive messages."""

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


def parse_conversation(line: bytes, domains: Domains, usual: str) -> Conversation:
    """Parse a fine-tuning line: `{"prompt", "response"}` or `{"messages"}`, optionally with `domain`; other keys are ignored.

    usual: domain of a line that names none. Raises RejectedLine for any other line, and for a mistyped `domain`.
    """
    record = json_object(line)
    check_unique_keys(record, (*_PAIR, *_CONVERSATION, "domain"))
    if "domain" not in record and (near := difflib.get_close_matches("domain", record, n=1, cutoff=_NEAR)):
        raise RejectedLine("unknown key", f"unknown key {near[0]!r}, nearest 'domain'")
    domain = known_domain(record["domain"], domains) if "domain" in record else usual
    keys = [key for key in (*_PAIR, *_CONVERSATION) if key in record]
    if keys == list(_PAIR):
        prompt, response = (visible_text(record[key], key) for key in _PAIR)
        return Conversation(domain, (("user", prompt), ("assistant", response)))
    if keys != list(_CONVERSATION):
        raise RejectedLine("wrong keys", f"the line has {', '.join(keys) or 'none of the keys'}; expected: {_EXPECTED}")
    return Conversation(domain, _messages(record["messages"]))


def _messages(value: Any) -> Messages:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise RejectedLine("messages not a list of objects", f"expected: {_EXPECTED}")
    messages: list[tuple[Role, str]] = []
    for number, each in enumerate(value):
        check_unique_keys(each, ("role", "content"))
        role = each.get("role")
        if role not in get_args(Role):
            raise RejectedLine(
                "unknown role", f"messages.{number}.role is {role!r}; expected: {', '.join(get_args(Role))}"
            )
        if role == "system" and number:
            raise RejectedLine("system message not the first", f"messages.{number}")
        messages.append((cast(Role, role), visible_text(each.get("content"), f"messages.{number}.content")))
    if len(messages) < 2 or messages[-1][0] != "assistant":
        raise RejectedLine("no answer at the end", "the last message must be the assistant's, after another one")
    if messages[0][0] == "assistant":
        raise RejectedLine("an answer to nothing", "messages.0 is the assistant's; it needs a prompt")
    return tuple(messages)
