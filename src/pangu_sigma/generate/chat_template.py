"""Chat templates: the messages of a chat as a text that the model continues.

Each message is formatted by the template of its role. The prompt ends with the beginning of an answer, without trailing blanks: a
token of English text includes the blank before it, so a model that is to answer " Hello" must not have read the blank already.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pangu_sigma.domains import Domain
from pangu_sigma.sections import ChatConfig

Role = Literal["system", "user", "assistant"]

Messages = tuple[tuple[Role, str], ...]
"""Roles and texts of consecutive messages."""

CONTENT = "{content}"
"""Placeholder of a message's text in a chat template."""


@dataclass(frozen=True)
class ChatTemplate:
    """Template that turns the messages of a chat into a prompt: for each role a text in which `{content}` stands for the message,
    and the stop strings, before which a generated answer ends."""

    system: str
    user: str
    assistant: str
    stop: tuple[str, ...]

    @staticmethod
    def of(domain: Domain, chosen: ChatConfig) -> ChatTemplate:
        """Return the template of a domain. Fields of `chosen` that are None get the defaults of the domain's language."""
        changes = {name: value for name, value in chosen if value is not None}
        if chosen.stop is not None:
            changes["stop"] = tuple(chosen.stop)
        return replace(_DEFAULTS[domain.language], **changes)

    def prompt(self, messages: Iterable[tuple[Role, str]]) -> str:
        """Format (role, text) messages of a chat as a prompt, which ends where the model's answer begins."""
        formatted = "".join(getattr(self, role).replace(CONTENT, text) for role, text in messages)
        return formatted + self._beginning.rstrip(" ")

    def answer(self, text: str) -> str:
        """Return an answer as the model generates it after `prompt`: with the blanks in front that `prompt` omits at its end."""
        return self._beginning[len(self._beginning.rstrip(" ")) :] + text

    def without_blanks(self, text: str) -> str:
        """Return a generated answer, or its beginning, without the blanks that `answer` puts before it."""
        blanks = len(self.answer(""))
        return text[:blanks].lstrip(" ") + text[blanks:]

    @property
    def _beginning(self) -> str:
        """Text before an answer."""
        return self.assistant.partition(CONTENT)[0]

    def jinja(self) -> str:
        """Return this template in Jinja, the form in which Hugging Face tokenizers hold chat templates."""
        cases = []
        for word, role in (("if", "system"), ("elif", "user"), ("elif", "assistant")):
            before, _, after = (_quoted(text) for text in getattr(self, role).partition(CONTENT))
            cases.append(f"{{% {word} message['role'] == '{role}' %}}{{{{ {before} + message['content'] + {after} }}}}")
        beginning = _quoted(self._beginning.rstrip(" "))
        return (
            f"{{% for message in messages %}}{''.join(cases)}{{% endif %}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ {beginning} }}}}{{% endif %}}"
        )


def without_oldest(messages: Messages) -> Iterator[tuple[int, Messages]]:
    """Yield a chat without its n oldest messages, for n = 0, 1, 2 and so on, as (n, other messages). A system message and the last
    message always stay."""
    system = messages[:1] if messages[0][0] == "system" else ()
    for omitted_count in range(len(messages) - len(system)):
        yield omitted_count, (*system, *messages[len(system) + omitted_count :])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_ENGLISH = ChatTemplate("{content}\n", "User: {content}\n", "Assistant: {content}\n", ("\nUser:",))
_CHINESE = ChatTemplate("{content}\n", "问：{content}\n", "答：{content}\n", ("\n问：",))
_DEFAULTS = {
    "en": _ENGLISH,
    "mixed": _ENGLISH,
    "zh": _CHINESE,
    "python": ChatTemplate("# {content}\n", "# {content}\n", "{content}\n", ()),
    "java": ChatTemplate("// {content}\n", "// {content}\n", "{content}\n", ()),
}
"""Default templates by the language of a domain; our choice. A model not trained on chats has at best seen texts of this kind."""
