"""The messages of a chat as a text that the model continues.

A message becomes a text by the template of its role. The last text is the beginning of an answer, without the blanks at its end: a
token of English text has the blank before it, so a model that is to say " Hello" must not have read the blank already.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pangu_sigma.config import ChatConfig
from pangu_sigma.domains import Domain

Role = Literal["system", "user", "assistant"]

CONTENT = "{content}"


@dataclass(frozen=True)
class ChatTemplate:
    """Texts of messages by their role, each with `{content}` in it, and the strings that an answer ends before."""

    system: str
    user: str
    assistant: str
    stop: tuple[str, ...]

    @classmethod
    def of(cls, domain: Domain, chosen: ChatConfig) -> ChatTemplate:
        """The template of a domain: what the configuration says, and what is usual for its language where it says nothing."""
        usual = _USUAL[domain.language]
        return cls(
            usual.system if chosen.system is None else chosen.system,
            usual.user if chosen.user is None else chosen.user,
            usual.assistant if chosen.assistant is None else chosen.assistant,
            usual.stop if chosen.stop is None else tuple(chosen.stop),
        )

    def prompt(self, messages: Iterable[tuple[Role, str]]) -> str:
        """The text of messages and the beginning of an answer."""
        said = "".join(getattr(self, role).replace(CONTENT, text) for role, text in messages)
        return said + self._beginning.rstrip(" ")

    def answer(self, text: str) -> str:
        """What a model says after `prompt` whose answer is a text: with the blanks that the prompt does not have."""
        return self._beginning[len(self._beginning.rstrip(" ")) :] + text

    @property
    def _beginning(self) -> str:
        """What stands before an answer."""
        return self.assistant.partition(CONTENT)[0]

    def jinja(self) -> str:
        """The template in the language that others read, which writes the same text for messages that are texts."""
        roles = {"system": self.system, "user": self.user, "assistant": self.assistant}
        cases = []
        for number, (role, text) in enumerate(roles.items()):
            before, _, after = (_quoted(each) for each in text.partition(CONTENT))
            word = "elif" if number else "if"
            cases.append(f"{{% {word} message['role'] == '{role}' %}}{{{{ {before} + message['content'] + {after} }}}}")
        beginning = _quoted(self._beginning.rstrip(" "))
        return (
            f"{{% for message in messages %}}{''.join(cases)}{{% endif %}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ {beginning} }}}}{{% endif %}}"
        )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_ENGLISH = ChatTemplate("{content}\n", "User: {content}\n", "Assistant: {content}\n", ("\nUser:",))
_CHINESE = ChatTemplate("{content}\n", "问：{content}\n", "答：{content}\n", ("\n问：",))
_USUAL = {
    "en": _ENGLISH,
    "mixed": _ENGLISH,
    "zh": _CHINESE,
    "python": ChatTemplate("# {content}\n", "# {content}\n", "{content}\n", ()),
    "java": ChatTemplate("// {content}\n", "// {content}\n", "{content}\n", ()),
}
"""By the language of a domain; our choice. A model that was not trained on chats has at best seen texts of this kind."""
