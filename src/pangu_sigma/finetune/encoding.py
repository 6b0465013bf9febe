"""Tokenization of conversations: the prompt as in serving, the answer, and <eot>.

Prompt and answer are encoded separately, because in generation a model reads the tokens of the prompt alone. A sample that is too
long is cut as the task says, but never its answer.

Shape suffix: T ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.domains import Domain
from pangu_sigma.finetune.conversation import Messages
from pangu_sigma.generate.chat_template import ChatTemplate
from pangu_sigma.text.tokenizer import Tokenizer


class TooLong(Exception):
    """Error of a fine-tuning sample that does not fit even when cut; the message says what is too long."""


@dataclass(frozen=True)
class EncodedSample:
    """Tokenized sample. ids_T: prompt, answer, <eot>. answer: index of the answer's start. cut: True if the prompt was cut."""

    ids_T: np.ndarray
    answer: int
    cut: bool

    @property
    def counted(self) -> int:
        """Number of ids in the loss: the answer and its <eot>."""
        return len(self.ids_T) - self.answer


class SampleEncoder:
    """Tokenizer of fine-tuning samples, with the chat template of the run's section `chat`."""

    def __init__(self, tokenizer: Tokenizer, config: Config):
        self._tokenizer, self._chat, self._cut = tokenizer, config.chat, config.tuning.cut
        self._most = config.model.seq_length + 1  # the last id is only predicted

    def spell(self, before: Messages, text: str, domain: Domain) -> EncodedSample:
        """Tokenize an answer and the messages before it. Raises TooLong."""
        template = ChatTemplate.of(domain, self._chat)
        answer = [*self._tokenizer.encode(template.answer(text), domain), self._tokenizer.eot]
        room = self._most - len(answer)
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
            tag = 0 if domain.format == "text" else 1  # a language tag stays where it is
            if room > tag:
                return [*ids[:tag], *ids[len(ids) - room + tag :]], True
        if self._cut == "messages":
            first = before[:1] if before[0][0] == "system" else ()
            rest = before[len(first) :]
            for left_out in range(1, len(rest)):
                ids = self._tokenizer.prompt(template.prompt((*first, *rest[left_out:])), domain)
                if len(ids) <= room:
                    return ids, True
        raise TooLong("prompt and answer are too long")
