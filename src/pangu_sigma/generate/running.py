"""State of one text in the engine: the tokens read so far, and the use of each row of logits.

Shape suffixes: W wanted tokens, R rows of a slot, N segments of the RRE layers, T tokens of a text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from pangu_sigma.errors import UserError
from pangu_sigma.generate.decoder import Chunk, Decoder
from pangu_sigma.generate.incremental_text import IncrementalText, decode_in_parts
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
        self._rows = self._tokenizer.row_of[self.request.domain.slot, self._ids].tolist()
        self._used = np.count_nonzero(self._tokenizer.slot_rows[self.request.domain.slot] >= 0)
        self._most = min(self.request.max_new_tokens, decoder.config.model.seq_length - self._prompt)
        self._text, self._rng = IncrementalText(self.request.stop), np.random.default_rng(self.request.seed)
        self._structured = self.request.structure and self.request.structure.begin()
        scores = self.request.prompt_logprobs is not None and self.request.scored_from < self._prompt
        self.to_read = self._prompt if self._most else self._prompt - 1 if scores else 0

    @property
    def is_generating(self) -> bool:
        """True from the first token of the answer on."""
        return len(self._ids) > self._prompt

    def shared_with(self, other: RunningText) -> int:
        """Return the length of the prefix that both prompts share, if `other` has yet to read it and can be the leader; else 0."""
        own, others = self.request, other.request
        if other.leader is not None or own.domain != others.domain:
            return 0
        longest = min(self.to_read, other.to_read)
        shared = longest
        if own.ids[:longest] != others.ids[:longest]:
            pairs = zip(own.ids, others.ids, strict=False)
            shared = next(number for number, (own_id, other_id) in enumerate(pairs) if own_id != other_id)
        scored_alike = (own.prompt_logprobs, own.scored_from) == (others.prompt_logprobs, others.scored_from)
        return shared if shared > other.read and (scored_alike or not self._scores_up_to(shared - 1)) else 0

    def take_part_of_prefix(self, leader: RunningText, number: int) -> None:
        """Count the first `number` tokens, fewer than `shared`, as read, because the leader has read them for both texts; copy the
        leader's scores of them."""
        self.read = number
        self._scores = leader._scores[: number + 1 - self.request.scored_from] if self._scores_up_to(number) else []

    def join_prefix(self, leader: RunningText, logits_1R: np.ndarray) -> None:
        """Count all `shared` tokens as read, after the leader has read the last of them. logits_1R: logits of the token after them,
        which may be another one in the leader's text; no row if this text does not need them."""
        self.take_part_of_prefix(leader, self.shared - 1)
        last = self.chunk(self.shared)
        self.take(last, logits_1R[: last.wanted])

    def wants(self, end: int) -> bool:
        """Return True if the text needs the logits after its first `end` tokens."""
        return end >= self._prompt or self._scores_up_to(end)

    @property
    def needs_lane(self) -> bool:
        """True if the text has tokens to read after the shared prefix, or generates an answer."""
        return self.shared < self.to_read or self._most > 0

    def _scores_up_to(self, number: int) -> bool:
        """Return True if tokens of the prompt up to this number are scored."""
        return self.request.prompt_logprobs is not None and self.request.scored_from <= number

    def chunk(self, end: int, followed: bool = False) -> Chunk:
        """Return the chunk to read next, up to token number `end`. followed: True if another text, whose leader this one is, needs
        the last logits."""
        wanted = int(followed or self.wants(end))
        if self.request.prompt_logprobs is not None and not self.is_generating:
            wanted = max(wanted, end - max(self.read, self.request.scored_from - 1))
        return Chunk(self.lane, self._ids[self.read : end], wanted)

    def take(self, chunk: Chunk, logits_WR: np.ndarray) -> None:
        """Use the logits that the decoder returned for a chunk of this text: score prompt tokens, or sample the next token.

        Raises UserError if logits that it uses are not finite."""
        self.read += len(chunk.ids)
        if not self.is_generating:
            if self.request.prompt_logprobs is not None:
                first = self.read - chunk.wanted + 1  # the token that row 0 scores
                for number, logits_R in zip(range(first, self._prompt), logits_WR, strict=False):
                    if number >= self.request.scored_from:  # an earlier one was read for a follower
                        self._check_finite(logits_R, number)
                        self._scores.append(self._scored(logits_R, self._rows[number], self.request.prompt_logprobs))
            if self.read < self.to_read:
                return
            self.fill_prompt()
        if self._most:
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
        row = request.sampling.choose(may_R, self._rows[: self._prompt], self._rows[self._prompt :], self._rng)
        if self._structured:
            self._structured.take(row)
        token = int(self._tokenizer.slot_rows[slot, row])
        self._ids.append(token)
        self._rows.append(row)
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
        if not self._text.stopped and (is_whole or len(self._ids) == self._prompt + self._most):
            self.finish = "stop" if is_whole else "length"
            text += self._text.end()  # an incomplete character at the end may complete a stop string
        if self._text.stopped:
            self.finish = "stop"
        return text

    def _check_finite(self, logits_R: np.ndarray, number: int) -> None:
        """Raise UserError unless all rows with a token have finite logits. number: number of tokens before them."""
        if np.count_nonzero(np.isfinite(logits_R)) != self._used:
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
