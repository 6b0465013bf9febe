"""Cache of an evaluation's results in a file, so that the same command resumes after a kill."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TextIO

from pangu_sigma.sealed import DamagedFile, sealed_line, unsealed_line

logger = logging.getLogger(__name__)


class ResultCache:
    """Cache of an evaluation's results by name, in a file of lines with their hashes. The first `put` creates the file anew.

    is_continued: True if the file has answers to the same questions, of an evaluation that was killed. A damaged line is logged
    and left out, so that its result is computed again.
    """

    def __init__(self, file: Path, dependencies: dict[str, Any]):
        """Load the results of an existing file if its first line, the header, equals `dependencies`: all that results depend on."""
        self._file, self._values = file, dict[str, Any]()
        self._stream: TextIO | None = None
        self._file_start = sealed_line(dependencies)  # header and intact lines, with which `put` begins the new file
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []  # a line that a kill cut off has no end
        self.is_continued = bool(lines) and lines[0] + b"\n" == self._file_start.encode()
        for number, line in enumerate(lines[1:] if self.is_continued else [], 2):
            try:
                result = unsealed_line(line)
            except DamagedFile:
                logger.warning("%s: line %d is damaged; its result is computed again", file, number)
                continue
            self._values[result["name"]] = result["value"]
            self._file_start += f"{line.decode()}\n"
        if self.is_continued:
            logger.info("%s: going on after %d answers and results of before", file, len(self._values))
        elif lines:
            logger.info("%s is of another model or of other options, or is damaged, and is begun anew", file)

    def get(self, name: str) -> Any:
        """Return the cached result of a name; None if there is none."""
        return self._values.get(name)

    def put(self, name: str, value: Any) -> None:
        """Add a result, a JSON value, to the cache and its file."""
        self._values[name] = value
        if self._stream is None:
            self._stream = self._file.open("w", encoding="utf-8")
            self._stream.write(self._file_start)
        self._stream.write(sealed_line({"name": name, "value": value}, allow_nan=True))
        self._stream.flush()

    def remove(self) -> None:
        """Close and remove the cache file, after the evaluation."""
        if self._stream is not None:
            self._stream.close()
        self._file.unlink(missing_ok=True)
