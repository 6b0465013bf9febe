"""A request to stop: SIGTERM, which launchers and cluster managers send before they kill."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Whether SIGTERM has come; while it is used as a context manager the signal ends nothing by itself."""

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None
        self._listens = threading.current_thread() is threading.main_thread()  # Python allows handlers there only

    def __enter__(self) -> StopRequest:
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
