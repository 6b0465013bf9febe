"""Generation engine with continuous batching: each step reads one token of every generating text, and a chunk of waiting prompts.
`Engine` decides which text reads what, `RunningText` is the state of one text.

A text has a lane of the decoder's KV cache from the first token of its prompt to the last one of its answer. Texts join and leave
at any step, so a long text blocks no other, and a long prompt is read in chunks between the tokens of the others. Requests get
lanes in their order of arrival. A common prefix of prompts is read once, and the lane copied; a text reads tokens whose logits it
uses by itself.

Shape suffixes: W wanted tokens, R rows of a slot, N segments of the RRE layers, T tokens of a text.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Literal

import numpy as np

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import Domain
from pangu_sigma.errors import UserError, keyword
from pangu_sigma.generate.characters import IncrementalText, decode_in_parts
from pangu_sigma.generate.decoder import Chunk, Decoder
from pangu_sigma.generate.request import Answer, Request, Token
from pangu_sigma.generate.sampling import log_probability

logger = logging.getLogger(__name__)

_CHUNK_BESIDE = 128
"""Maximum number of prompt tokens that a step reads while texts are generated: the next token of each waits for them."""

_WORTH_COPYING = 16
"""Minimum length of a common prefix to share; copying a lane takes time too."""

Scored = tuple[float | None, tuple[tuple[int, float], ...]]
"""Log-probability of a token; and (id, log-probability) of the likeliest tokens at its place."""


class QueueFull(UserError, RuntimeError):
    """Error of a request to an engine whose queue is full."""


class Engine:
    """Continuous-batching engine that answers requests with one decoder. No one else may use the decoder's lanes.

    `submit` and `cancel` may be called by any thread at any time. `step` does the work; threads that step wait for each other.

    updated: answers that the latest step gave a token, or ended; for the only thread that steps.
    """

    def __init__(self, decoder: Decoder, waiting: int = 64, chunk: int = 256):
        """waiting: maximum length of the queue. chunk: maximum number of prompt tokens that a step reads."""
        self.decoder = decoder
        self._max_waiting, self._max_chunk = waiting, chunk
        self.updated: list[Answer] = []
        self._queue: deque[RunningText] = deque()  # requests without a lane
        self._texts: list[RunningText] = []  # with a lane, in their order of arrival
        self._free = list(range(decoder.lanes))[::-1]  # lanes; the last one is used next
        self._queue_lock, self._step_lock = threading.Lock(), threading.RLock()

    @property
    def running(self) -> int:
        """Number of texts that have a lane, and so are read or generated."""
        return len(self._texts)

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._queue)

    def check(self, request: Request) -> None:
        """Raise ConfigError for a request that this model cannot answer. The ids of stop_ids and logit_bias are not checked: the
        caller must have looked up their rows in the domain's slot (its share of the word table)."""
        for name, value in (("max_new_tokens", request.max_new_tokens), ("seed", request.seed)):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
                raise ConfigError(f"{keyword(name)}={value!r} is not allowed: a whole number, 0 or more")
        length, count = self.decoder.config.model.seq_length, len(request.ids)
        if not count:
            raise ConfigError("a prompt has no tokens; give at least one character, or a domain with a language tag")
        if count > length:
            size = f"{count} tokens, more than model.seq_length={length}"
            raise ConfigError(f"a prompt of domain {request.domain.name} has {size}; shorten it")
        self.decoder.tokenizer.rows(request.ids, request.domain)
        if "" in request.stop:
            raise ConfigError("stop: a stop string is empty; leave it away")

    def submit(self, request: Request) -> Answer:
        """Add a request to the queue and return its answer, which `step` generates.

        Raises ConfigError for a request that this model cannot answer, and QueueFull if the queue is full.
        """
        self.check(request)
        text = RunningText(Answer(request), self.decoder)
        with self._queue_lock:
            if len(self._queue) >= self._max_waiting:
                raise QueueFull(f"{len(self._queue)} requests wait already, which is the most; ask again later")
            self._queue.append(text)
        return text.answer

    def cancel(self, answer: Answer) -> None:
        """Cancel an answer: the next step frees its lane before it reads. A finished answer is not changed."""
        if answer.finish is None:
            answer.cancelled = True

    def step(self) -> bool:
        """Read one token of each generating text, and some of the prompts. Returns False if there was nothing to do.

        An error of the decoder ends all running texts as "cancelled" and is raised again; queued requests are still answered. An
        error of one text, such as logits that are not finite, ends that text alone, and is not raised.
        """
        with self._step_lock:
            self.updated = []
            self._drop_cancelled()
            self._admit()
            chunks = self._next_chunks()
            try:
                logits = self.decoder.read([chunk for _, chunk in chunks]) if chunks else []
            except BaseException as error:
                for text in list(self._texts):
                    text.answer.error = error if isinstance(error, Exception) else None  # none for Ctrl-C
                    self._leave(text, cancelled=True)
                raise
            for (text, chunk), logits_WR in zip(chunks, logits, strict=True):
                self._take(text, chunk, logits_WR)
            return bool(chunks or self.updated)

    def complete(self, requests: Sequence[Request]) -> list[Answer]:
        """Return the answers to requests, in their order. Raises the errors of `answers_to`."""
        return [answer for _, answer in sorted(self.answers_to(requests))]

    def answers_to(self, requests: Sequence[Request]) -> Generator[tuple[int, Answer], None, None]:
        """Submit requests and step until all are answered. Yield (number of the request, answer) once an answer is finished.
        If the iterator is closed before its end, cancel the unfinished answers.

        Raises ConfigError, before anything is read, for a request that this model cannot answer, and the error of an answer that
        fails, such as the UserError of logits that are not finite.
        """
        for request in requests:
            self.check(request)
        waiting, unfinished = deque(enumerate(requests)), dict[int, Answer]()
        try:
            while waiting or unfinished:
                if waiting:
                    number, request = waiting.popleft()
                    unfinished[number] = self.submit_when_free(request)
                else:
                    self.step()
                for number, answer in list(unfinished.items()):
                    if not self.is_unfinished(answer):
                        del unfinished[number]
                        yield number, answer
        finally:
            for answer in unfinished.values():
                self.cancel(answer)

    def is_unfinished(self, answer: Answer) -> bool:
        """Return False once an answer is finished. Raises the error that ended it, and RuntimeError if it was cancelled, so that
        no caller takes a part of an answer for the whole."""
        if answer.error is not None:
            raise answer.error
        if answer.finish == "cancelled":
            raise RuntimeError("an answer was cancelled before its end")
        return answer.finish is None

    def submit_when_free(self, request: Request) -> Answer:
        """Step until the queue has room, and submit a request. Raises ConfigError as `submit`."""
        while True:
            try:
                return self.submit(request)
            except QueueFull:
                self.step()

    @contextmanager
    def lane_for(self, domain: Domain, ids: Sequence[int]) -> Iterator[int]:
        """Step until a lane of the KV cache is free, empty it for a text of a domain, and yield its number. `ids` are only checked.
        The engine takes no step while the block runs. Raises ConfigError for ids that the model cannot read.
        """
        self.check(Request(domain, tuple(ids)))
        with self._step_lock:
            while not self._free:
                self.step()
            lane = self._free[-1]  # it may stay in the list: other threads take lanes with this lock only
            self.decoder.begin(lane, domain)
            yield lane

    def logits(self, domain: Domain, ids: Sequence[int], wanted: int = 1) -> np.ndarray:
        """Read a text, and return the logits of the token after each of its last `wanted` tokens, float32 [W, R] for the R rows of
        the domain's slot (its share of the word table); -inf for rows without a token.

        Raises ConfigError for ids that the model cannot read.
        """
        with self.lane_for(domain, ids) as lane:
            (logits_WR,) = self.decoder.read([Chunk(lane, list(ids), wanted)])
            return logits_WR

    def _drop_cancelled(self) -> None:
        """Finish the cancelled answers, and free their lanes."""
        with self._queue_lock:
            cancelled_requests = [text for text in self._queue if text.answer.cancelled]
            for text in cancelled_requests:
                self._queue.remove(text)
        for text in cancelled_requests:
            self._finish(text, cancelled=True)
        for text in [text for text in self._texts if text.answer.cancelled]:
            self._leave(text, cancelled=True)

    def _admit(self) -> None:
        """Assign free lanes to the requests in the queue, in their order of arrival. If a text with a lane begins with the same
        tokens, it becomes the leader of the new text: it reads these tokens for both."""
        while self._free:
            with self._queue_lock:
                if not self._queue:
                    break
                text = self._queue.popleft()
            if not text.to_read:  # the request needs no logits
                text.fill_prompt()
                self._finish(text)
                continue
            text.lane = self._free.pop()
            self.decoder.begin(text.lane, text.request.domain)
            leader = max(self._texts, key=text.shared_with, default=None)
            shared = text.shared_with(leader) if leader else 0
            if shared >= _WORTH_COPYING:
                text.leader, text.shared = leader, shared
            self._texts.append(text)

    def _next_chunks(self) -> list[tuple[RunningText, Chunk]]:
        """Return (text, tokens to read) of this step: one token of each generating text, and prompt tokens up to a budget, in the
        order of arrival. A text with a leader waits for it. A leader stops where a follower's copy of its lane must end."""
        is_any_generating = any(text.is_generating for text in self._texts)
        budget, chunks = min(self._max_chunk, _CHUNK_BESIDE) if is_any_generating else self._max_chunk, []
        for text in self._texts:
            if text.is_generating:
                chunks.append((text, text.chunk(text.read + 1)))
            elif text.leader is None and budget:
                shared_lengths = [follower.shared for follower in self._followers(text)]
                end = min([text.to_read, text.read + budget, *shared_lengths])
                budget -= end - text.read
                chunks.append((text, text.chunk(end)))
        return chunks

    def _take(self, text: RunningText, chunk: Chunk, logits_WR: np.ndarray) -> None:
        """Use the logits of a chunk that was read for a text. Followers whose shared tokens are all read part from the text."""
        try:
            text.take(chunk, logits_WR)
        except Exception as error:
            if not isinstance(error, UserError):
                logger.exception("an answer failed; the others go on")
            text.answer.error = error
            self._leave(text, cancelled=True)
            return
        for follower in self._followers(text):
            if follower.shared == text.read:
                self._part(follower, text)
        if text.finish is not None:
            self._leave(text)
        elif text.is_generating:
            self.updated.append(text.answer)

    def _followers(self, text: RunningText) -> list[RunningText]:
        return [other for other in self._texts if other.leader is text]

    def _part(self, follower: RunningText, leader: RunningText) -> None:
        """Copy the leader's lane to its follower, which reads on by itself from there."""
        self.decoder.copy(leader.lane, follower.lane)
        follower.leader, follower.read = None, leader.read

    def _leave(self, text: RunningText, cancelled: bool = False) -> None:
        """Finish the answer of a text, and free its lane. Its followers first copy the lane as far as it is read."""
        for follower in self._followers(text):
            self._part(follower, text)
        self._texts.remove(text)
        self._free.append(text.lane)
        self._finish(text, cancelled)

    def _finish(self, text: RunningText, cancelled: bool = False) -> None:
        text.answer.finish = "cancelled" if cancelled else (text.finish or "length")
        self.updated.append(text.answer)


class RunningText:
    """State of one request in the engine: its prompt, and the answer so far.

    lane: lane of the decoder; -1 before one is assigned. read: number of the text's tokens in that lane. to_read: number of prompt
    tokens that the model must read for this request. finish: finish reason of the answer; None until it is finished. leader: text
    whose prompt begins with the same `shared` tokens, and which reads these for both; None without one, and once they are read.
    """

    def __init__(self, answer: Answer, decoder: Decoder):
        """answer: empty answer to the request, which this object fills."""
        self.answer, self.request = answer, answer.request
        self.lane, self.read = -1, 0
        self.leader: RunningText | None = None
        self.shared = 0
        self.finish: Literal["stop", "length"] | None = None
        self._tokenizer = decoder.tokenizer
        self._ids = list(self.request.ids)  # prompt and answer
        self._prompt_length, self._scores = len(self._ids), list[Scored]()  # scores of the prompt's tokens
        self._slot_rows = self._tokenizer.row_of[self.request.domain.slot, self._ids].tolist()
        self._token_count = np.count_nonzero(self._tokenizer.slot_rows[self.request.domain.slot] >= 0)
        self._max_new_tokens = min(self.request.max_new_tokens, decoder.config.model.seq_length - self._prompt_length)
        self._text, self._rng = IncrementalText(self.request.stop), np.random.default_rng(self.request.seed)
        self._structure = self.request.structure and self.request.structure.begin()
        first_scored = self._prompt_length if self.request.prompt_logprobs is None else self.request.scored_from
        to_score = self._prompt_length - 1 if first_scored < self._prompt_length else 0  # the last token scores none
        self.to_read = self._prompt_length if self._max_new_tokens else to_score
        # number of first tokens whose logits are not used, so that another text may read them
        self._without_logits = min(first_scored, self._prompt_length) - 1

    @property
    def is_generating(self) -> bool:
        """True from the first token of the answer on."""
        return len(self._ids) > self._prompt_length

    def shared_with(self, other: RunningText) -> int:
        """Return the number of first tokens that `other` can read for both texts as their leader; 0 if it cannot."""
        if other.leader is not None or self.request.domain != other.request.domain:
            return 0
        longest = min(self._without_logits, other.to_read)
        pairs = zip(self._ids[:longest], other._ids, strict=False)
        shared = next((number for number, (own_id, other_id) in enumerate(pairs) if own_id != other_id), longest)
        return shared if shared > other.read else 0  # a leader must not have read more: its whole lane is copied

    def chunk(self, end: int) -> Chunk:
        """Return the chunk with the tokens to read next, before token number `end`."""
        wanted = max(0, end - max(self.read, self._without_logits))
        return Chunk(self.lane, self._ids[self.read : end], wanted)

    def take(self, chunk: Chunk, logits_WR: np.ndarray) -> None:
        """Use the logits that the decoder returned for a chunk of this text: score prompt tokens, or sample the next token.

        Raises UserError if logits that it uses are not finite."""
        self.read += len(chunk.ids)
        if not self.is_generating:
            if self.request.prompt_logprobs is not None:
                first = self.read - chunk.wanted + 1  # number of the token that the first row of logits scores
                for number, logits_R in zip(range(first, self._prompt_length), logits_WR, strict=False):
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
        """Put the scored tokens of the prompt into the answer if the request asks for them, after the token before them."""
        if self.request.prompt_logprobs is None:
            return
        surfaces, first = self._tokenizer.vocabulary.surfaces, min(self.request.scored_from, self._prompt_length) - 1
        ids, scores = self._ids[first:], [(None, ()), *self._scores]
        texts = decode_in_parts(surfaces[token] for token in ids)
        tokens = zip(ids, texts, scores, strict=True)
        self.answer.prompt = [Token(token, text, logprob, top) for token, text, (logprob, top) in tokens]

    def _write(self, logits_R: np.ndarray) -> None:
        """Sample the next token and append it to the answer. Its log-probability is the model's, before bias and structure."""
        request, slot = self.request, self.request.domain.slot
        self._check_finite(logits_R, len(self._ids))
        allowed_R = logits_R.copy() if request.logit_bias else logits_R
        for biased_token, bias in request.logit_bias:
            allowed_R[self._tokenizer.row_of[slot, biased_token]] += bias
        if self._structure:
            allowed_R = self._structure.allowed(allowed_R)
        row = request.sampling.choose(
            allowed_R, self._slot_rows[: self._prompt_length], self._slot_rows[self._prompt_length :], self._rng
        )
        if self._structure:
            self._structure.take(row)
        token = int(self._tokenizer.slot_rows[slot, row])
        self._ids.append(token)
        self._slot_rows.append(row)
        text = self._add_to_text(token)
        logprob, top = (None, ()) if request.logprobs is None else self._scored(logits_R, row, request.logprobs)
        self.answer.tokens.append(Token(token, text, logprob, top))
        self.answer.text += text

    def _add_to_text(self, token: int) -> str:
        """Add the newest token to the text, set `finish` if the answer ends, and return the characters that are now certain."""
        request = self.request
        if token in request.stop_ids or (token == self._tokenizer.eot and not request.ignore_eot):
            self.answer.warning = self._structure.problem if self._structure else ""
            self.finish, self.answer.ended_by_id = "length" if self.answer.warning else "stop", True
            return self._text.end()
        text = self._text.add(self._tokenizer.vocabulary.surfaces[token])
        is_whole = self._structure and self._structure.is_whole
        if not self._text.stopped and (is_whole or len(self._ids) == self._prompt_length + self._max_new_tokens):
            self.finish = "stop" if is_whole else "length"
            text += self._text.end()  # an incomplete character at the end may complete a stop string
        if self._text.stopped:
            self.finish = "stop"
        return text

    def _check_finite(self, logits_R: np.ndarray, length: int) -> None:
        """Raise UserError unless all rows with a token have finite logits; rows without one have -inf. length: number of
        tokens that the logits follow."""
        if np.count_nonzero(np.isfinite(logits_R)) != self._token_count:
            raise UserError(
                f"domain {self.request.domain.name}: the logits after {length} tokens are not finite, so no token can be chosen or "
                "scored: weights are NaN, infinite or too large to compute with; load another checkpoint, or export the model again"
            )

    def _scored(self, logits_R: np.ndarray, row: int, top: int) -> Scored:
        """Return the log-probability of the token in a row, and the ids and log-probabilities of the `top` likeliest tokens."""
        logprob, likeliest = log_probability(logits_R, row, top)
        ids_R = self._tokenizer.slot_rows[self.request.domain.slot]
        return logprob, tuple((int(ids_R[other]), value) for other, value in likeliest)
