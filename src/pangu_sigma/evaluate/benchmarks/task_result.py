"""Result of a benchmark."""

from __future__ import annotations

import math
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
        """Return the result of the benchmark as values for JSON; metrics that are not finite become None."""
        metrics = {name: value if math.isfinite(value) else None for name, value in self.metrics.items()}
        return {**metrics, "n": self.n, "skipped": self.skipped, "truncated": self.truncated}
