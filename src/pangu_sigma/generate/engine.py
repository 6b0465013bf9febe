"""Generation engine with continuous batching: each step reads one token of every generating text, and a chunk of waiting prompts.

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from pangu_sigma.domains import Domain
from pangu_sigma.errors import UserError
from pangu_sigma.generate.decoder import Chunk, Decoder
from pangu_sigma.generate.request import Answer, Request, check_fits
from pangu_sigma.generate.running import RunningText

logger = logging.getLogger(__name__)

OnChange = Callable[[Answer], None]
"""Callback with an answer, called by the thread that steps the engine after each new token and at the end."""

_CHUNK_BESIDE = 128
"""Maximum number of prompt tokens that a step reads while texts are generated: the next token of each waits for them."""

_WORTH_COPYING = 16
"""Minimum length of a common prefix to share; copying a lane takes time too."""


class QueueFull(UserError, RuntimeError):
    """Error of a request to an engine whose queue is full."""


class Engine:
    """Continuous-batching engine that answers requests with one decoder. No one else may use the decoder's lanes.

    `submit` and `cancel` may be called by any thread at any time. `step` does the work; threads that step wait for each other.
    """

    def __init__(self, decoder: Decoder, waiting: int = 64, chunk: int = 256):
        """waiting: maximum length of the queue. chunk: maximum number of prompt tokens that a step reads."""
        self.decoder = decoder
        self._most_waiting, self._chunk = waiting, chunk
        self._queue: deque[RunningText] = deque()
        self._texts: list[RunningText] = []
        self._free = list(range(decoder.lanes))[::-1]
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
        """Raise ConfigError for a request that this model cannot answer."""
        check_fits(request, self.decoder.tokenizer, self.decoder.config.model.seq_length)

    def submit(self, request: Request, on_change: OnChange | None = None) -> Answer:
        """Add a request to the queue and return its answer, which `step` generates.

        on_change: called with the answer after each new token and at the end, by the thread that steps.
        Raises ConfigError for a request that this model cannot answer, and QueueFull if the queue is full.
        """
        self.check(request)
        text = RunningText(Answer(request), self.decoder, on_change)
        with self._queue_lock:
            if len(self._queue) >= self._most_waiting:
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
            has_changed = self._drop_cancelled()
            has_changed |= self._admit()
            reading = self._reading()
            if not reading:
                return has_changed
            try:
                logits = self.decoder.read([chunk for _, chunk in reading])
            except BaseException as error:
                for text in list(self._texts):
                    text.answer.error = error if isinstance(error, Exception) else None
                    self._leave(text, cancelled=True)
                raise
            for (text, chunk), logits_WR in zip(reading, logits, strict=True):
                self._take(text, chunk, logits_WR)
            return True

    def complete(self, requests: Sequence[Request], on_change: OnChange | None = None) -> list[Answer]:
        """Submit requests and step until all are answered. If interrupted, cancel their unfinished answers. on_change: called with
        an answer after each new token.

        Raises ConfigError, before anything is read, for a request that this model cannot answer, and the error of an answer that
        fails, such as the UserError of logits that are not finite.
        """
        for request in requests:
            self.check(request)
        answers: list[Answer] = []
        try:
            for request in requests:
                answers.append(self.submit_when_free(request, on_change))  # noqa: PERF401 (an interruption must find them)
            for answer in answers:
                while self.is_unfinished(answer):
                    self.step()
        finally:
            for answer in answers:
                self.cancel(answer)
        return answers

    def is_unfinished(self, answer: Answer) -> bool:
        """Return False once an answer is finished. Raises the error that ended it, and RuntimeError if it was cancelled, because
        callers need it complete."""
        if answer.error is not None:
            raise answer.error
        if answer.finish == "cancelled":
            raise RuntimeError("an answer was cancelled before its end")
        return answer.finish is None

    def submit_when_free(self, request: Request, on_change: OnChange | None = None) -> Answer:
        """Step until the queue has room, and submit a request. Raises ConfigError as `submit`."""
        while True:
            try:
                return self.submit(request, on_change)
            except QueueFull:
                self.step()

    @contextmanager
    def lane_for(self, domain: Domain, ids: Sequence[int]) -> Iterator[int]:
        """Yield the number of an empty lane for a text of a domain; no other text is read while the block runs.

        Raises ConfigError for ids that the model cannot read.
        """
        self.check(Request(domain, tuple(ids)))
        with self._step_lock:
            while not self._free:
                self.step()
            lane = self._free[-1]  # it may stay in the list: other threads take lanes with this lock only
            self.decoder.begin(lane, domain)
            yield lane

    def logits(self, domain: Domain, ids: Sequence[int], wanted: int = 1) -> np.ndarray:
        """Return the logits of the token after each of the last `wanted` of `ids`, float32 [W, R]; -inf in rows without a token.

        Raises ConfigError for ids that the model cannot read.
        """
        with self.lane_for(domain, ids) as lane:
            (logits_WR,) = self.decoder.read([Chunk(lane, list(ids), wanted)])
            return logits_WR

    def _drop_cancelled(self) -> bool:
        with self._queue_lock:
            dropped = [text for text in self._queue if text.answer.cancelled]
            for text in dropped:
                self._queue.remove(text)
        for text in dropped:
            self._finish(text, cancelled=True)
        leaving = [text for text in self._texts if text.answer.cancelled]
        for text in leaving:
            self._leave(text, cancelled=True)
        return bool(dropped or leaving)

    def _admit(self) -> bool:
        """Give free lanes to the requests in the queue, in their order of arrival."""
        admitted = False
        while self._free:
            with self._queue_lock:
                if not self._queue:
                    break
                text = self._queue.popleft()
            admitted = True
            if not text.to_read:  # the request needs no logits
                text.fill_prompt()
                self._finish(text)
                continue
            text.lane = self._free.pop()
            self.decoder.begin(text.lane, text.request.domain)
            # its leader is the text being read with the longest common prefix, if that is worth a copy
            leader = max(self._texts, key=text.shared_with, default=None)
            if leader is not None and (shared := text.shared_with(leader)) >= _WORTH_COPYING:
                text.leader, text.shared = leader, shared
            self._texts.append(text)
        return admitted

    def _reading(self) -> list[tuple[RunningText, Chunk]]:
        """Return what this step reads: a token of each generating text, and a chunk of prompts, in their order of arrival."""
        budget, reading = self._chunk, []
        if any(text.is_generating for text in self._texts):
            budget = min(budget, _CHUNK_BESIDE)
        for text in self._texts:
            if text.is_generating:
                reading.append((text, text.chunk(text.read + 1)))
            elif text.leader is None and budget:
                shared_lengths = [other.shared for other in self._followers(text)]
                end = min([text.to_read, text.read + budget, *shared_lengths])
                budget -= end - text.read
                reading.append((text, text.chunk(end)))
        return reading

    def _take(self, text: RunningText, chunk: Chunk, logits_WR: np.ndarray) -> None:
        """Use the logits of a chunk. Texts whose shared tokens are all read go on in lanes of their own."""
        try:
            text.take(chunk, logits_WR)
        except Exception as error:
            if not isinstance(error, UserError):
                logger.exception("an answer failed; the others go on")
            text.answer.error = error
            self._leave(text, cancelled=True)
            return
        for other in self._followers(text):
            if other.shared == text.read:
                self._part(other, text)
        if text.finish is not None:
            self._leave(text)
        elif text.is_generating:
            self._tell(text)

    def _followers(self, text: RunningText) -> list[RunningText]:
        return [other for other in self._texts if other.leader is text]

    def _part(self, follower: RunningText, leader: RunningText) -> None:
        """Copy what the leader has read to its follower, which reads on by itself."""
        self.decoder.copy(leader.lane, follower.lane)
        follower.leader, follower.read = None, leader.read

    def _leave(self, text: RunningText, cancelled: bool = False) -> None:
        """Finish the answer of a text, and free its lane."""
        for other in self._followers(text):
            self._part(other, text)
        self._texts.remove(text)
        self._free.append(text.lane)
        self._finish(text, cancelled)

    def _finish(self, text: RunningText, cancelled: bool = False) -> None:
        text.answer.finish = "cancelled" if cancelled else (text.finish or "length")
        self._tell(text)

    def _tell(self, text: RunningText) -> None:
        if text.on_change is None:
            return
        try:
            text.on_change(text.answer)
        except Exception:
            logger.exception("who asked for an answer failed to take it; it is cancelled, the others go on")
            text.on_change = None
            self.cancel(text.answer)
