"""Handler of SIGTERM, which launchers and cluster managers send before they kill a process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_request() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets in a `with` statement, instead of ending the process.

    Python lets only the main thread handle signals. In another thread the event is never set.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: requested.set())
    try:
        yield requested
    finally:
        signal.signal(signal.SIGTERM, before)
