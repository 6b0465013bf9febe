"""What a benchmark gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TaskResult:
    """The result of one benchmark. metrics: values by name. n: items. skipped: lines that could not be used. truncated: items whose
    text was cut to fit into the model."""

    metrics: dict[str, float]
    n: int
    skipped: int
    truncated: int

    def figures(self) -> dict[str, Any]:
        """The form in which it is written as JSON."""
        return {**self.metrics, "n": self.n, "skipped": self.skipped, "truncated": self.truncated}
