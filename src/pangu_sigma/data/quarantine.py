"""The lines that cannot be used: written down as they are met, and kept whatever becomes of the preparation."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from pangu_sigma.data.documents import Rejected
from pangu_sigma.errors import DataError

logger = logging.getLogger(__name__)

_SHOWN = 3
"""Number of reasons that are shown with an example: the most frequent ones."""


class Quarantine:
    """The unusable lines of one preparation, as a context manager around it.

    file: where they are written, one JSON object a line. When the block ends well it is removed: `copy_to` has put it into the
    prepared folder. When the block fails and there are such lines, it stays, and the error says so.
    counts: number of lines by reason. examples: the first line of each reason, `file:offset: detail`.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def __enter__(self) -> Quarantine:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # line by line, so that a killed process leaves them too; names of files may hold bytes that are no text
            self._stream = self.file.open("w", buffering=1, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise DataError(
                f"cannot write {self.file}: {error.strerror}; set data.path to a folder of yours"
            ) from error
        return self

    def add(self, line: Rejected) -> None:
        """Write a line down. Raises OSError."""
        self.counts[line.reason] += 1
        self.examples.setdefault(line.reason, f"{line.file}:{line.offset}: {line.detail}")
        self._stream.write(json.dumps(asdict(line), ensure_ascii=False) + "\n")

    def copy_to(self, file: Path) -> None:
        """Write what there is so far to another file. Raises OSError."""
        file.write_bytes(self.file.read_bytes())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        if error is None or not self.counts:
            self.file.unlink()
            return
        told = f"{format_reasons(dict(self.counts), self.examples)}\nall of them are in {self.file}"
        if isinstance(error, DataError):
            raise DataError(f"{error}\n{told}") from error
        logger.warning("%s", told)


def format_reasons(counts: dict[str, int], examples: dict[str, str]) -> str:
    """The number of unusable lines, and the most frequent reasons with an example each, a line for each."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    lines = [f"{sum(counts.values()):,} lines are unusable and quarantined:"]
    for reason, count in ranked[:_SHOWN]:
        lines.append(f"  {count:,} × {reason}" + (f", first {examples[reason]}" if reason in examples else ""))
    if rest := sum(count for _, count in ranked[_SHOWN:]):
        lines.append(f"  {rest:,} × other reasons")
    return "\n".join(lines)
