"""TensorBoard file of a run, written synchronously. The thread of tensorboardX's `SummaryWriter` ends at the first error of the
disk, and a later point waits for ever for room in its queue. Here such an error ends the curves, but not the training:
metrics.jsonl has the same numbers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

logger = logging.getLogger(__name__)


class TensorBoardWriter:
    """Writer of a run's new TensorBoard event file, from `first_step` on; TensorBoard hides these steps of older event files."""

    def __init__(self, folder: Path, first_step: int):
        self._folder, self._failed = folder, False
        self._writer: EventsWriter | None = None
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add the value of each name at a step to its curve."""
        for name, value in values.items():
            self._write(Event(summary=scalar(name, value), step=step))

    def flush(self) -> None:
        """Write buffered points to the disk."""
        self._try(lambda writer: writer.flush())

    def close(self) -> None:
        """Write buffered points to the disk, and close the file."""
        self._try(lambda writer: writer.close())

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._try(lambda writer: writer.write_event(event))

    def _try(self, write: Callable[[EventsWriter], object]) -> None:
        if self._failed:
            return
        try:
            if self._writer is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._writer = EventsWriter(str(self._folder / "events"))
            write(self._writer)
        except OSError as error:
            self._failed = True
            logger.warning(
                "%s: %s; nothing more is written for TensorBoard, until training is started again; metrics.jsonl has the same "
                "numbers",
                self._folder,
                error.strerror or error,
            )
