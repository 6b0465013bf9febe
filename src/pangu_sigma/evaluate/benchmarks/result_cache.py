"""Cache of an evaluation's results in a file, so that the same command resumes after a kill."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, TextIO

logger = logging.getLogger(__name__)


class ResultCache:
    """Cache of an evaluation's results by name, in a JSON Lines file that the first `put` begins, and each one writes."""

    def __init__(self, file: Path, of: dict[str, Any]):
        """Load the file if its header equals `of`, else begin a new file. of: everything that the results depend on."""
        self._file, self._values = file, dict[str, Any]()
        self._stream: TextIO | None = None
        head = json.dumps(of, ensure_ascii=False)
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []  # what a kill cut off has no end of line
        if lines and lines[0] == head.encode():
            self._values = dict(json.loads(line) for line in lines[1:])
            logger.info("%s: going on after %d answers and results of before", file, len(self._values))
        elif lines:
            logger.info("%s is of another model or of other options, and is begun anew", file)
            lines = []
        self._begun = b"".join(line + b"\n" for line in lines) or head.encode() + b"\n"

    def get(self, name: str) -> Any:
        """Return the cached result of a name; None if there is none."""
        return self._values.get(name)

    def put(self, name: str, value: Any) -> None:
        """Add a result, a JSON value, to the cache and its file."""
        self._values[name] = value
        if self._stream is None:
            self._file.write_bytes(self._begun)
            self._stream = self._file.open("a", encoding="utf-8")
        self._stream.write(json.dumps([name, value], ensure_ascii=False) + "\n")
        self._stream.flush()

    def remove(self) -> None:
        """Close and remove the cache file, after the evaluation."""
        if self._stream is not None:
            self._stream.close()
        self._file.unlink(missing_ok=True)
