"""The text of tokens while they come: a character appears when all its bytes are there, and what may become a stop string waits."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence


class GrowingText:
    """A text that ends before the first of its stop strings.

    Which one is first does not depend on where tokens begin: it is the one whose last character comes first, and of several that
    end with it the longest. stopped: True when one was found; then there is nothing more to come.
    """

    def __init__(self, stop: Sequence[str] = ()):
        self.stopped = False
        self._stop = stop
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def add(self, surface: bytes) -> str:
        """The characters that are sure when a token with this surface has come."""
        return self._sure(self._characters.decode(surface))

    def end(self) -> str:
        """The characters that were held back, when no more tokens come; a character that was broken off becomes U+FFFD."""
        sure = self._sure(self._characters.decode(b"", final=True))
        held, self._held = self._held, ""
        return sure + held

    def _sure(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Number of characters at the end of a text that a stop string may begin with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def spelled(surfaces: Iterable[bytes]) -> list[str]:
    """The characters that are sure after each token of a whole text; joined they are the text."""
    growing = GrowingText()
    found = [growing.add(surface) for surface in surfaces]
    if found:
        found[-1] += growing.end()
    return found
