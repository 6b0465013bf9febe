"""A decoder whose answers are given: its tokens are bytes, and it says by heart what belongs to a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from helpers.fake_decoder import EOT, FakeDecoder

from pangu_sigma.domains import Domain
from pangu_sigma.sections import ChatConfig

NEVER = -1e9
"""Logit of a token that is not said: its probability is 0, and yet it is finite, as a model's logits must be."""


class ToldDecoder(FakeDecoder):
    """A `Decoder` with an answer to each prompt, or several that are equally likely; it has nothing to say to other prompts.

    prompts: those that it was asked, as it read them.
    """

    def __init__(
        self, answers: Mapping[str, str | Sequence[str]], seq_length: int = 2000, chat: ChatConfig | None = None
    ):
        super().__init__(4, seq_length, self._told, [b"" if i == EOT else bytes([i]) for i in range(256)])
        if chat is not None:
            self.config = self.config.model_copy(update={"chat": chat})
        self.tokenizer.prompt = lambda text, domain: list(text.encode())
        self.prompts: set[str] = set()
        self._answers = {
            prompt.encode(): [each.encode() for each in ([told] if isinstance(told, str) else told)]
            for prompt, told in answers.items()
        }

    def _told(self, domain: Domain, ids: Sequence[int]) -> np.ndarray:
        text, logits = bytes(ids), np.full(256, NEVER)
        prompt = max((each for each in self._answers if text.startswith(each)), key=len, default=None)
        if prompt is None or text == prompt:
            self.prompts.add(text.decode())
        said = text[len(prompt) :] if prompt is not None else b""
        for answer in self._answers[prompt] if prompt is not None else [b""]:
            if answer.startswith(said):
                next_one = answer[len(said)] if len(answer) > len(said) else EOT
                logits[next_one] = np.logaddexp(logits[next_one], 0.0)
        if logits.max() == NEVER:
            logits[EOT] = 0.0
        return logits
