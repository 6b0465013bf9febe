"""Result of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TaskResult:
    """Result of one benchmark. metrics: values by name. n: number of items. skipped: lines that could not be used. truncated:
    items whose text was cut to fit into the model."""

    metrics: dict[str, float]
    n: int
    skipped: int
    truncated: int

    def figures(self) -> dict[str, Any]:
        """Return the result of the benchmark as values for JSON."""
        return {**self.metrics, "n": self.n, "skipped": self.skipped, "truncated": self.truncated}
