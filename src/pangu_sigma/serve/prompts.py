"""Tokenization of a request's prompt in its domain, with warnings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pangu_sigma.config import Config
from pangu_sigma.domains import Domain
from pangu_sigma.generate.chat_template import ChatTemplate, Role, without_oldest
from pangu_sigma.serve.refusals import ApiError
from pangu_sigma.text.tokenizer import Tokenizer

_Result = TypeVar("_Result")

TOO_LONG = "context_length_exceeded"  # code of a refusal, as in OpenAI's interface
_FOLDED_CHARACTERS = 4  # that NFKC may fold into one in ordinary text: a letter with its marks


class PromptTokenizer:
    """Tokenizer of the prompts of HTTP requests. It works in its own thread, so that a long text does not block the event loop."""

    def __init__(self, tokenizer: Tokenizer, config: Config):
        """Texts that have more characters than the longest model.seq_length tokens are refused without tokenization."""
        self.tokenizer, self.length = tokenizer, config.model.seq_length
        self._end_name = tokenizer.vocabulary.pieces[tokenizer.eot]
        longest_token = max(len(surface.decode(errors="replace")) for surface in tokenizer.vocabulary.surfaces)
        self._max_characters = _FOLDED_CHARACTERS * longest_token * self.length
        self._thread = ThreadPoolExecutor(1, "tokenizer")

    def close(self) -> None:
        """Stop the tokenizer's thread once it has read its present text. Texts that wait are not read."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def in_thread(self, work: Callable[..., _Result], *arguments: object) -> _Result:
        """Run `work(*arguments)`, which tokenizes, in the tokenizer's thread and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def read(self, text: str, domain: Domain, tags: bool = True) -> list[int]:
        """Tokenize a text. A text that is just `<eot>`, the name of the end-of-document token, becomes that token.

        tags: False to put no language tag before the text. Raises ApiError for invalid Unicode.
        """
        if text == self._end_name:
            return [self.tokenizer.eot]
        try:
            return self.tokenizer.prompt(text, domain) if tags else self.tokenizer.encode(text, domain)
        except ValueError as error:
            raise ApiError.invalid("prompt", str(error)) from error

    def text_prompt(self, text: str, domain: Domain, tags: bool) -> list[int]:
        """Tokenize a prompt; an empty prompt becomes <eot>. tags: as in `read`. Raises ApiError above model.seq_length tokens."""
        if len(text) > self._max_characters:
            reason = f"{len(text)} characters are too many for a model that reads {self.length} tokens; shorten it"
            raise ApiError.invalid("prompt", reason, TOO_LONG)
        return self.read(text, domain, tags) or [self.tokenizer.eot]

    def chat_prompt(
        self, messages: Sequence[tuple[Role, str]], domain: Domain, template: ChatTemplate, max_tokens: int | None
    ) -> tuple[list[int], list[str]]:
        """Tokenize a chat, without its oldest messages if it is too long. Returns the ids, and warnings about messages left out.

        max_tokens: number of tokens to reserve for the answer; None for a quarter of model.seq_length. A system message and the
        last message always stay. Raises ApiError if these alone do not fit.
        """
        reserved = max_tokens or max(self.length // 4, 1)
        if reserved >= self.length:
            reason = f"{reserved} leaves no room for a prompt: the model can read {self.length} tokens; lower it"
            raise ApiError.invalid("max_tokens", reason, TOO_LONG)
        fix = "lower max_tokens" if max_tokens else "set max_tokens, which keeps less for the answer"
        capacity = f"the model can read {self.length} tokens, of which {reserved} are for the answer"
        for omitted_count, chat_messages in without_oldest(tuple(messages)):
            text = template.prompt(chat_messages)
            if len(text) > self._max_characters:
                continue  # too long, without tokenization
            ids = self.read(text, domain)
            if len(ids) <= self.length - reserved:
                warning = f"{omitted_count} of {len(messages)} messages, the oldest, were left out"
                return ids, [f"{warning}: {capacity}; {fix}, or send less"] if omitted_count else []
        subject = "the first and the last one do" if messages[0][0] == "system" else "the last one does"
        raise ApiError.invalid("messages", f"{subject} not fit: {capacity}; shorten them, or {fix}", TOO_LONG)
