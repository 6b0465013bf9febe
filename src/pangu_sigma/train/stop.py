"""Handler of SIGTERM, which launchers and cluster managers send before they kill a process."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Context manager in which SIGTERM sets `requested` instead of ending the process.

    Python lets only the main thread handle signals. In another thread the manager does nothing, and `requested` stays False.
    """

    def __init__(self) -> None:
        self.requested = False
        """True once SIGTERM was received."""
        self._before: Any = None
        self._listens = threading.current_thread() is threading.main_thread()  # Python allows handlers there only

    def __enter__(self) -> StopRequest:
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
