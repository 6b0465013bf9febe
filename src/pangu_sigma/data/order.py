"""Which samples come next: a function of the seed and of how many samples each domain has given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Cursor:
    """Samples taken so far from each domain, by index."""

    taken: list[int]

    def state(self) -> dict[str, Any]:
        return {"taken": self.taken}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Cursor:
        return cls(list(state["taken"]))
