"""The lines of a task's file: a prompt and its response, or the messages of a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast, get_args

from pangu_sigma.data.documents import Unusable, json_object, known_domain, refuse_doubled, visible_text
from pangu_sigma.domains import Domains
from pangu_sigma.generate.chat_template import Role

Messages = tuple[tuple[Role, str], ...]

_PAIR, _CONVERSATION = ("prompt", "response"), ("messages",)
_EXPECTED = '{"prompt": …, "response": …} or {"messages": [{"role": …, "content": …}, …]}'


@dataclass(frozen=True)
class Talk:
    """A conversation in a domain, whose last message is an answer."""

    domain: str
    messages: Messages

    def answers(self) -> Iterator[tuple[Messages, str]]:
        """Each answer with all that was said before it: what a model is asked, turn by turn."""
        for number, (role, text) in enumerate(self.messages):
            if role == "assistant":
                yield self.messages[:number], text


def parse_talk(line: bytes, domains: Domains, usual: str) -> Talk:
    """The conversation in a line: `{"prompt", "response"}` or `{"messages"}`, and its `domain`; other keys are not read.

    usual: name of the domain of a line that names none. Raises Unusable for anything else.
    """
    record = json_object(line)
    refuse_doubled(record, (*_PAIR, *_CONVERSATION, "domain"))
    domain = known_domain(record["domain"], domains) if "domain" in record else usual
    there = [key for key in (*_PAIR, *_CONVERSATION) if key in record]
    if there == list(_PAIR):
        prompt, response = (visible_text(record[key], key) for key in _PAIR)
        return Talk(domain, (("user", prompt), ("assistant", response)))
    if there != list(_CONVERSATION):
        raise Unusable("wrong keys", f"the line has {', '.join(there) or 'none of the keys'}; expected: {_EXPECTED}")
    return Talk(domain, _messages(record["messages"]))


def _messages(value: Any) -> Messages:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise Unusable("messages not a list of objects", f"expected: {_EXPECTED}")
    found = []
    for number, each in enumerate(value):
        refuse_doubled(each, ("role", "content"))
        role = each.get("role")
        if role not in get_args(Role):
            raise Unusable("unknown role", f"messages.{number}.role is {role!r}; expected: {', '.join(get_args(Role))}")
        if role == "system" and number:
            raise Unusable("system message not the first", f"messages.{number}")
        found.append((cast(Role, role), visible_text(each.get("content"), f"messages.{number}.content")))
    if len(found) < 2 or found[-1][0] != "assistant":
        raise Unusable("no answer at the end", "the last message must be the assistant's, and one must come before it")
    if found[0][0] == "assistant":
        raise Unusable("an answer to nothing", "messages.0 is the assistant's; it needs a prompt")
    return tuple(found)
