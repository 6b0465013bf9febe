"""Prompt runner of the benchmarks: generates answers to prompts with one domain, and counts prompts that were truncated."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

from pangu_sigma.bars import Bar
from pangu_sigma.config import ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Answer, Request
from pangu_sigma.generate.sampling import Sampling, check_text

logger = logging.getLogger(__name__)

_AT_ONCE = 512
"""Number of requests submitted together; their answers are in memory until the result is extracted."""


def complete_in_parts(
    engine: Engine, requests: Sequence[Request], extract: Callable[[Answer], Any], finished: Callable[[int, Any], None]
) -> None:
    """Answer requests, some at a time. extract: returns the result of an answer. finished: called with request index and result."""
    for first in range(0, len(requests), _AT_ONCE):
        some = requests[first : first + _AT_ONCE]
        numbers = {id(request): number for number, request in enumerate(some, first)}

        def advance(answer: Answer, numbers: dict[int, int] = numbers) -> None:
            if answer.finish in ("stop", "length"):
                finished(numbers[id(answer.request)], extract(answer))

        engine.complete(some, advance)


class PromptRunner:
    """Runner of a benchmark's prompts: cuts them so that model.seq_length has room for whole answers, and generates the answers.
    truncated: number of prompts cut so far."""

    def __init__(
        self,
        engine: Engine,
        domain: str,
        most: int,
        max_new_tokens: int | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        stop: Sequence[str] = (),
    ):
        """domain: domain's name. max_new_tokens: maximum tokens of an answer; None for `most`, or half of model.seq_length if less.

        stop: strings before which answers end. Raises ConfigError for an unknown domain, and if no room is left for prompts.
        """
        config, self._engine = engine.decoder.config, engine
        self.domain = domains_of(config).named(domain)
        self.truncated = 0
        self._tokenizer = engine.decoder.tokenizer
        self._sampling, self._stop = sampling, tuple(stop)
        length = config.model.seq_length
        self._most = min(most, length // 2) if max_new_tokens is None else max_new_tokens
        self._room = length - self._most
        if self._most < 1 or self._room < 1:
            raise ConfigError(
                f"max_new_tokens={self._most} is not allowed: 1 to {length - 1}, because prompt and answer together have "
                f"model.seq_length={length} tokens at most"
            )
        if max_new_tokens is None and self._most < most:
            logger.info(
                "answers have %d tokens at most, half of what the model can read; max_new_tokens changes it", self._most
            )

    def fits(self, prompt: str) -> bool:
        """Return True if a prompt fits without truncation."""
        return len(self._ids(prompt)) <= self._room

    def truncate(self, text: str, prompt: Callable[[str], str]) -> str:
        """Return prompt(text); the end of the text is cut off if the prompt does not fit.

        prompt: function that returns the prompt for a text. Raises ConfigError if not even that for an empty text fits.
        """
        if self.fits(whole := prompt(text)):
            return whole
        if not self.fits(prompt("")):
            raise ConfigError(
                f"the prompt without its text has {len(self._ids(prompt('')))} tokens, and {self._room} are free beside an answer "
                f"of {self._most}; lower max_new_tokens, or shorten the template"
            )
        self.truncated += 1
        # as many of the lengths 1, 2, 3, … fit as the longest cut text has characters
        longest = bisect_left(range(1, len(text)), True, key=lambda end: not self.fits(prompt(text[:end])))
        return prompt(text[:longest])

    def first_fitting(self, prompts: Sequence[str]) -> str:
        """Return the first of several prompts that fits; the last one if none does, which `answers` then truncates."""
        for number, prompt in enumerate(prompts):
            if self.fits(prompt):
                self.truncated += number > 0
                return prompt
        return prompts[-1]

    def answers(self, prompts: Sequence[str], times: int = 1) -> list[list[str]]:
        """Generate `times` answers to each prompt, with the seeds 0, 1, 2, …. A prompt that is too long loses its beginning."""
        requests, cut = [], 0
        for prompt in prompts:
            check_text(prompt, "a prompt")
            ids = self._ids(prompt)
            cut += len(ids) > self._room
            tail = tuple(ids[-self._room :])
            requests += [
                Request(self.domain, tail, self._most, self._sampling, number, self._stop) for number in range(times)
            ]
        if cut:
            logger.warning(
                "%d of %d prompts lost their beginning: %d tokens fit beside an answer", cut, len(prompts), self._room
            )
        self.truncated += cut
        texts = [""] * len(requests)
        with Bar(total=len(requests), desc="answers", unit="answer", leave=False) as bar:

            def finished(number: int, text: str) -> None:
                texts[number] = text
                bar.update()

            complete_in_parts(self._engine, requests, lambda answer: answer.text, finished)
        return [texts[first : first + times] for first in range(0, len(texts), times)]

    def _ids(self, prompt: str) -> list[int]:
        return self._tokenizer.prompt(prompt, self.domain) or [self._tokenizer.eot]
