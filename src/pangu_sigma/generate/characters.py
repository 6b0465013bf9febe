"""Characters of tokens: the text of an answer as it grows, and the part of a text that each token adds."""

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
        self._held_back = ""

    def add(self, surface: bytes) -> str:
        """Decode the next token, and return the characters that are now certain. surface: bytes of the token."""
        return self._certain(self._characters.decode(surface))

    def end(self) -> str:
        """Return the characters that are held back after the last token. An incomplete character becomes U+FFFD."""
        certain = self._certain(self._characters.decode(b"", final=True))
        held_back, self._held_back = self._held_back, ""
        return certain + held_back

    def _certain(self, new_characters: str) -> str:
        """Add characters, and return all that are now certain; hold back an end with which a stop string may begin."""
        if self.stopped:
            return ""
        text = self._held_back + new_characters
        ends_and_begins = [(begin + len(stop), begin) for stop in self._stop if (begin := text.find(stop)) >= 0]
        if ends_and_begins:
            self.stopped, self._held_back = True, ""
            _, begin = min(ends_and_begins)
            return text[:begin]
        overlap = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held_back = text[len(text) - overlap :]
        return text[: len(text) - overlap]


def _overlap(text: str, stop: str) -> int:
    """Return the number of characters at the end of a text with which a stop string may begin."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def decode_in_parts(surfaces: Iterable[bytes]) -> list[str]:
    """Split the text of tokens, given as bytes, into a part for each token: the characters that are certain with this token."""
    decoder = IncrementalText()
    parts = [decoder.add(surface) for surface in surfaces]
    if parts:
        parts[-1] += decoder.end()
    return parts
