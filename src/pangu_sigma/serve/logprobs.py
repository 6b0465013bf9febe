"""Log-probabilities of tokens in the two forms of OpenAI's interface."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from pangu_sigma.generate.request import Token
from pangu_sigma.text.vocabulary import Vocabulary

MIN_LOGPROB = -9999.0
"""Lowest log-probability in a response: JSON has no infinity."""


class TokenTexts:
    """Texts of single tokens of a vocabulary, in the form in which responses show them beside log-probabilities."""

    def __init__(self, vocabulary: Vocabulary):
        self.surfaces, self._pieces = vocabulary.surfaces, vocabulary.pieces

    def display_text(self, token: int) -> str:
        """Return a token's text; for a token without text its name, such as <eot>; for a part of a character `bytes:\\xe4`."""
        surface = self.surfaces[token]
        if not surface:
            return self._pieces[token]
        try:
            return surface.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{value:02x}" for value in surface)


class CompletionTokens:
    """Converter of one answer's tokens, taken in order, to the log-probabilities in a response of /v1/completions.

    ids: ids of the text so far, which begins with those that the response does not show.
    """

    def __init__(self, texts: TokenTexts, ids: Sequence[int] = ()):
        self._texts, self.ids = texts, [*ids]
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def to_logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """Return the log-probabilities of the answer's next tokens. The first token of a text has none."""
        self.ids += [token.id for token in tokens]
        return {
            "text_offset": [self._next_offset(token.id) for token in tokens],
            "token_logprobs": [None if token.logprob is None else max(token.logprob, MIN_LOGPROB) for token in tokens],
            "tokens": [self._texts.display_text(token.id) for token in tokens],
            "top_logprobs": [self._alternatives(token) for token in tokens],
        }

    def _next_offset(self, token: int) -> int:
        """Return the offset, in characters of the text, at which the next token begins. Add the token's characters to the text."""
        unfinished_bytes, _ = self._characters.getstate()
        begin, new_text = self._offset, self._characters.decode(self._texts.surfaces[token])
        self._offset += len(new_text)
        # U+FFFD at the beginning stands for a character before this token that this token does not complete
        return begin + bool(unfinished_bytes and new_text.startswith("\N{REPLACEMENT CHARACTER}"))

    def _alternatives(self, token: Token) -> dict[str, float] | None:
        """Return the log-probabilities of a token and its alternatives, by their text. If several have the same text, it stands for
        the token itself, or else for the likeliest; the others are named `token_id:` and their id."""
        if token.logprob is None:
            return None
        logprob_of_text, own_text = dict[str, float](), self._texts.display_text(token.id)
        for alternative, logprob in (*token.top, (token.id, token.logprob)):
            text = self._texts.display_text(alternative)
            is_duplicate = alternative != token.id and text in (own_text, *logprob_of_text)
            logprob_of_text[f"token_id:{alternative}" if is_duplicate else text] = max(logprob, MIN_LOGPROB)
        return logprob_of_text


def chat_logprobs(texts: TokenTexts, tokens: Sequence[Token]) -> dict[str, Any]:
    """Return the log-probabilities of an answer's tokens as a response of /v1/chat/completions has them."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        finite_logprob = MIN_LOGPROB if logprob is None else max(logprob, MIN_LOGPROB)
        return {"token": texts.display_text(token), "bytes": list(texts.surfaces[token]), "logprob": finite_logprob}

    content = [entry(t.id, t.logprob) | {"top_logprobs": [entry(*other) for other in t.top]} for t in tokens]
    return {"content": content, "refusal": None}
