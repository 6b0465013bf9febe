"""Where a run stands."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pangu_sigma.data.order import Cursor


@dataclass
class Progress:
    """Where a run stands. step: steps done. updates: those of them that were applied; the learning rate follows it."""

    step: int
    updates: int
    cursor: Cursor

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        return cls(state["step"], state["updates"], Cursor.from_state(state["cursor"]))
