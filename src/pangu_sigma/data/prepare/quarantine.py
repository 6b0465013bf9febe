"""Quarantine of input lines that cannot be used: written to a file at once, which stays even if the preparation fails."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from pangu_sigma.errors import DataError
from pangu_sigma.text.documents import Rejected

logger = logging.getLogger(__name__)

_SHOWN = 3
"""Number of reasons shown with an example, the most frequent ones."""


class Quarantine:
    """Writer of the unusable lines of one preparation, as a context manager around it.

    file: one JSON object a line; None: lines are only counted. It is removed if the block succeeds, after `copy_to` has put it into
    the prepared folder. If the block fails and there are such lines, it stays if `kept`, and the error begins with them.
    counts: number of lines by reason. examples: the first line of each reason, with its number and what is wrong.
    """

    def __init__(self, file: Path | None, kept: bool = True) -> None:
        self.file, self._kept = file, kept
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def __enter__(self) -> Quarantine:
        if self.file is None:
            return self
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.unlink(missing_ok=True)  # a link there would be followed
            # line by line, so that a killed process leaves them too; names of files may hold bytes that are no text
            self._stream = self.file.open("x", buffering=1, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise DataError(f"cannot write {self.file}: {error.strerror}; choose another data.path") from error
        return self

    def add(self, line: Rejected) -> None:
        """Write a rejected line, and count it. Raises OSError."""
        self.counts[line.reason] += 1
        self.examples.setdefault(line.reason, str(line))
        if self.file is not None:
            self._stream.write(json.dumps(asdict(line), ensure_ascii=False) + "\n")

    def copy_to(self, file: Path) -> None:
        """Copy the lines written so far to another file. Raises OSError."""
        assert self.file is not None, "there is nothing to copy"
        file.write_bytes(self.file.read_bytes())

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.file is None:
            return
        self._stream.close()
        if error is None or not self.counts or not self._kept:
            self.file.unlink()
        if error is None or not self.counts:
            return
        where = f"\nall of them are in {self.file}" if self._kept else ""
        summary = f"{format_reasons(dict(self.counts), self.examples)}{where}"
        if isinstance(error, DataError):
            raise DataError(f"{summary}\n{error}") from error  # what is missing may be missing because of these lines
        logger.warning("%s", summary)


def format_reasons(counts: dict[str, int], examples: dict[str, str]) -> str:
    """Return the number of unusable lines, and the most frequent reasons with an example, as lines of text."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    total = sum(counts.values())
    lines = [f"{total:,} {'line is' if total == 1 else 'lines are'} unusable and quarantined:"]
    for reason, count in ranked[:_SHOWN]:
        lines.append(f"  {count:,} × {reason}" + (f", first {examples[reason]}" if reason in examples else ""))
    if rest := sum(count for _, count in ranked[_SHOWN:]):
        lines.append(f"  {rest:,} × other reasons")
    return "\n".join(lines)
