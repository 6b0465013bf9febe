"""State of one text in the engine: the tokens read so far, the use of each row of logits, and the answer's text as it grows.

Shape suffixes: W wanted tokens, R rows of a slot, N segments of the RRE layers, T tokens of a text.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np

from pangu_sigma.errors import UserError
from pangu_sigma.generate.decoder import Chunk, Decoder
from pangu_sigma.generate.request import Answer, Token
from pangu_sigma.generate.sampling import log_probability

Scored = tuple[float | None, tuple[tuple[int, float], ...]]
"""Log-probability of a token, and alternatives with their log-probabilities."""


class RunningText:
    """State of one request in the engine: its prompt, and the answer so far. Its `leader` is another text whose prompt begins with
    the same `shared` tokens, and which reads these for both; None if it has none or they are read.

    lane: lane of the decoder. read: number of the text's tokens in that lane. to_read: number of prompt tokens that the model must
    read for this request. finish: finish reason of the answer; None until it is finished.
    """

    def __init__(self, answer: Answer, decoder: Decoder, on_change: Callable[[Answer], None] | None):
        self.answer, self.request, self.on_change = answer, answer.request, on_change
        self.lane, self.read = -1, 0
        self.leader: RunningText | None = None
        self.shared = 0
        self.finish: Literal["stop", "length"] | None = None
        self._tokenizer = decoder.tokenizer
        self._ids = list(self.request.ids)
        self._prompt, self._scores = len(self._ids), list[Scored]()
        self._slot_rows = self._tokenizer.row_of[self.request.domain.slot, self._ids].tolist()
        self._token_count = np.count_nonzero(self._tokenizer.slot_rows[self.request.domain.slot] >= 0)
        self._max_new_tokens = min(self.request.max_new_tokens, decoder.config.model.seq_length - self._prompt)
        self._text, self._rng = IncrementalText(self.request.stop), np.random.default_rng(self.request.seed)
        self._structured = self.request.structure and self.request.structure.begin()
        first_scored = self._prompt if self.request.prompt_logprobs is None else self.request.scored_from
        self.to_read = self._prompt if self._max_new_tokens else self._prompt - 1 if first_scored < self._prompt else 0
        # first tokens of the prompt, whose logits are not used, so that another text may read them
        self._without_logits = min(first_scored, self._prompt) - 1

    @property
    def is_generating(self) -> bool:
        """True from the first token of the answer on."""
        return len(self._ids) > self._prompt

    def shared_with(self, other: RunningText) -> int:
        """Return the number of first tokens that `other` can read for both texts as their leader; 0 if it cannot."""
        if other.leader is not None or self.request.domain != other.request.domain:
            return 0
        longest = min(self._without_logits, other.to_read)
        pairs = zip(self._ids[:longest], other._ids, strict=False)
        shared = next((number for number, (own_id, other_id) in enumerate(pairs) if own_id != other_id), longest)
        return shared if shared > other.read else 0

    def chunk(self, end: int) -> Chunk:
        """Return the chunk to read next, up to token number `end`."""
        wanted = max(0, end - max(self.read, self._without_logits))
        return Chunk(self.lane, self._ids[self.read : end], wanted)

    def take(self, chunk: Chunk, logits_WR: np.ndarray) -> None:
        """Use the logits that the decoder returned for a chunk of this text: score prompt tokens, or sample the next token.

        Raises UserError if logits that it uses are not finite."""
        self.read += len(chunk.ids)
        if not self.is_generating:
            if self.request.prompt_logprobs is not None:
                first = self.read - chunk.wanted + 1  # the token that row 0 scores
                for number, logits_R in zip(range(first, self._prompt), logits_WR, strict=False):
                    self._check_finite(logits_R, number)
                    self._scores.append(self._scored(logits_R, self._slot_rows[number], self.request.prompt_logprobs))
            if self.read < self.to_read:
                return
            self.fill_prompt()
        if self._max_new_tokens:
            self._write(logits_WR[-1])
        else:
            self.finish = "length"

    def fill_prompt(self) -> None:
        """Put the prompt's tokens into the answer if the request asks for them."""
        if self.request.prompt_logprobs is None:
            return
        surfaces, first = self._tokenizer.vocabulary.surfaces, min(self.request.scored_from, self._prompt) - 1
        ids, scores = self._ids[first:], [(None, ()), *self._scores]
        texts = decode_in_parts(surfaces[token] for token in ids)
        of_each = zip(ids, texts, scores, strict=True)
        self.answer.prompt = [Token(token, text, logprob, top) for token, text, (logprob, top) in of_each]

    def _write(self, logits_R: np.ndarray) -> None:
        """Sample and append the next token."""
        request, slot = self.request, self.request.domain.slot
        self._check_finite(logits_R, len(self._ids))
        may_R = self._biased(logits_R)
        if self._structured:
            may_R = self._structured.allowed(may_R)
        row = request.sampling.choose(
            may_R, self._slot_rows[: self._prompt], self._slot_rows[self._prompt :], self._rng
        )
        if self._structured:
            self._structured.take(row)
        token = int(self._tokenizer.slot_rows[slot, row])
        self._ids.append(token)
        self._slot_rows.append(row)
        text = self._spell(token)
        logprob, top = (None, ()) if request.logprobs is None else self._scored(logits_R, row, request.logprobs)
        self.answer.tokens.append(Token(token, text, logprob, top))
        self.answer.text += text

    def _spell(self, token: int) -> str:
        """Return the characters that are certain with the newest token, and set `finish` if it is the last one."""
        request = self.request
        if token in request.stop_ids or (token == self._tokenizer.eot and not request.ignore_eot):
            self.answer.warning = self._structured.problem if self._structured else ""
            self.finish, self.answer.ended_by_id = "length" if self.answer.warning else "stop", True
            return self._text.end()
        text = self._text.add(self._tokenizer.vocabulary.surfaces[token])
        is_whole = self._structured and self._structured.is_whole
        if not self._text.stopped and (is_whole or len(self._ids) == self._prompt + self._max_new_tokens):
            self.finish = "stop" if is_whole else "length"
            text += self._text.end()  # an incomplete character at the end may complete a stop string
        if self._text.stopped:
            self.finish = "stop"
        return text

    def _check_finite(self, logits_R: np.ndarray, number: int) -> None:
        """Raise UserError unless all rows with a token have finite logits. number: number of tokens before them."""
        if np.count_nonzero(np.isfinite(logits_R)) != self._token_count:
            raise UserError(
                f"domain {self.request.domain.name}: the logits after {number} tokens are not finite, so no token can be chosen or "
                "scored: weights are NaN, infinite or too large to compute with; load another checkpoint, or export the model again"
            )

    def _biased(self, logits_R: np.ndarray) -> np.ndarray:
        if not self.request.logit_bias:
            return logits_R
        logits_R = logits_R.copy()
        for token, bias in self.request.logit_bias:
            logits_R[self._tokenizer.row_of[self.request.domain.slot, token]] += bias
        return logits_R

    def _scored(self, logits_R: np.ndarray, row: int, top: int) -> Scored:
        logprob, likeliest = log_probability(logits_R, row, top)
        ids_R = self._tokenizer.slot_rows[self.request.domain.slot]
        return logprob, tuple((int(ids_R[other]), value) for other, value in likeliest)


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
        """Return the characters that were held back, after the last token; an incomplete character becomes U+FFFD."""
        certain = self._certain(self._characters.decode(b"", final=True))
        held_back, self._held_back = self._held_back, ""
        return certain + held_back

    def _certain(self, new_characters: str) -> str:
        """Return the characters that are now certain; hold back an end that may be the beginning of a stop string."""
        if self.stopped:
            return ""
        text = self._held_back + new_characters
        matches = [(position + len(stop), position) for stop in self._stop if (position := text.find(stop)) >= 0]
        if matches:
            self.stopped, self._held_back = True, ""
            return text[: min(matches)[1]]
        overlap = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held_back = text[len(text) - overlap :]
        return text[: len(text) - overlap]


def _overlap(text: str, stop: str) -> int:
    """Return the number of characters at the end of a text with which a stop string may begin."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def decode_in_parts(surfaces: Iterable[bytes]) -> list[str]:
    """Return a part of the text for each token: the characters that are certain with it. All parts together are the text."""
    text = IncrementalText()
    texts = [text.add(surface) for surface in surfaces]
    if texts:
        texts[-1] += text.end()
    return texts
