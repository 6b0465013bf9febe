"""Fixtures of the experiments' tests: some of the product's, and comparisons without their trainings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from conftest import _freeze_live_objects, graph_mode, made_once, tiny_data, tiny_run

from experiments.cases import Cases
from pangu_sigma.checkpoint.changes import changed_keys
from pangu_sigma.config import Config

__all__ = ["_freeze_live_objects", "graph_mode", "made_once", "tiny_data", "tiny_run"]


@dataclass
class Recorded:
    """Cases that did not run: by name, what would have."""

    cases: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    prepared: list[Config] = field(default_factory=list)

    def config(self, name: str) -> Config:
        """The configuration of a training."""
        return next(argument for argument in self.cases[name] if isinstance(argument, Config))

    def differing(self, one: str, other: str) -> set[str]:
        """Keys in which two trainings differ."""
        trees = [self.config(name).model_dump(mode="json") for name in (one, other)]
        return {key for key, *_ in changed_keys(*trees)}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """No data is prepared and no case runs: both are recorded."""
    found = Recorded()
    monkeypatch.setattr("pangu_sigma.prepare_data", found.prepared.append)
    monkeypatch.setattr(Cases, "run", lambda self, name, *work: found.cases.update({name: work}))
    return found
