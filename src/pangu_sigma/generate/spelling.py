"""Incremental decoding of tokens to text: incomplete characters and possible stop strings are held back."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence


class IncrementalText:
    """Incremental decoder of tokens to text, which ends before the first stop string.

    The first stop string does not depend on token boundaries: it is the one whose last character comes first, and the longest of
    several that end there. stopped: True once a stop string was found; no more text follows.
    """

    def __init__(self, stop: Sequence[str] = ()):
        self.stopped = False
        self._stop = stop
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def add(self, surface: bytes) -> str:
        """Decode the next token, and return the characters that are now certain. surface: bytes of the token."""
        return self._sure(self._characters.decode(surface))

    def end(self) -> str:
        """Return the characters that were held back, after the last token; an incomplete character becomes U+FFFD."""
        sure = self._sure(self._characters.decode(b"", final=True))
        held, self._held = self._held, ""
        return sure + held

    def _sure(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        matches = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if matches:
            self.stopped, self._held = True, ""
            return text[: min(matches)[1]]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Return the number of characters at the end of a text with which a stop string may begin."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def decode_in_parts(surfaces: Iterable[bytes]) -> list[str]:
    """Return the characters that are certain after each token of a whole text; joined they are the text."""
    growing = IncrementalText()
    texts = [growing.add(surface) for surface in surfaces]
    if texts:
        texts[-1] += growing.end()
    return texts
