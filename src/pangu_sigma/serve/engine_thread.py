"""Thread that steps the engine, and its thread-safe interface for the request handlers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Answer, Request

logger = logging.getLogger(__name__)


_FAILURES = 3
"""Number of consecutive failed steps after which the engine is given up."""


class EngineThread:
    """Thread that runs the steps of the engine, which generate text. `submit` and `cancel` may be called from any thread.

    failed: True after repeated errors of the engine, which end the thread. on_failure: function that the thread then calls once.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.failed = False
        self.on_failure: Callable[[], None] = lambda: None
        self._wake = threading.Event()
        self._ending = False
        self._open: dict[Answer, Callable[[Answer], None]] = {}
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    def submit(self, request: Request, on_change: Callable[[Answer], None]) -> Answer:
        """Submit a request to the engine, and return its answer, to which the engine's thread adds tokens.

        on_change: function that this thread calls with the answer after each new token, at its end, and if the engine fails.
        Raises the errors of `Engine.submit`.
        """

        def changed(answer: Answer) -> None:
            if answer.finish is not None:
                self._open.pop(answer, None)
            on_change(answer)

        answer = self.engine.submit(request, changed)
        self._open[answer] = on_change
        if answer.finish is not None:  # it finished before the line above
            self._open.pop(answer, None)
        if self.failed:  # perhaps before this answer was in _open
            on_change(answer)
        self._wake.set()
        return answer

    def cancel(self, answer: Answer) -> None:
        """Cancel an answer as `Engine.cancel` does."""
        self.engine.cancel(answer)
        self._wake.set()

    def cancel_all(self) -> None:
        """Cancel the submitted answers that are not finished."""
        for answer in list(self._open):
            self.cancel(answer)

    def end(self) -> None:
        """Stop the thread after its current step."""
        self._ending = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        failures = 0
        while not self._ending and failures < _FAILURES:
            self._wake.clear()
            try:
                if self.engine.step():
                    failures = 0
                else:
                    self._wake.wait()
            except Exception:  # the engine has cancelled the running answers; waiting ones may still be answered
                failures += 1
                logger.exception("a step of the engine failed, and so did the answers that ran")
        if failures == _FAILURES:
            self._give_up()

    def _give_up(self) -> None:
        logger.error("%d steps failed one after another; nothing is answered any more", _FAILURES)
        self.failed = True
        for answer, on_change in list(self._open.items()):
            on_change(answer)
        self.on_failure()
