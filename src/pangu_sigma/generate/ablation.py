"""A model without some of its parts, or with other routing tables, to see what they bring; its folder does not change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pangu_sigma.data.prepared import drawn_tables
from pangu_sigma.generate.weights import Weights
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.sections import RoutingConfig
from pangu_sigma.stored.model import StoredModel


@dataclass(frozen=True)
class Ablation:
    """Parts of a model to leave out. rows: indices of entries of `model.rows`. experts: (segment, number), where None stands for
    all experts of the segment. routing: file of the routing tables to use in place of the model's; None: the model's."""

    rows: frozenset[int] = frozenset()
    experts: frozenset[tuple[int, int | None]] = frozenset()
    routing: Path | None = None

    def table_of(self, model: StoredModel) -> RoutingTable:
        """Return the tables to route by. Raises ConfigError for tables of other sizes, DataError if they cannot be read."""
        if self.routing is None:
            return model.table
        routing = RoutingConfig(table=str(self.routing))  # a configuration that names the file, which checks its sizes
        return drawn_tables(model.config.model_copy(update={"routing": routing}), model.tokenizer)


class WithoutParts(Weights):
    """Weights without the parts that an ablation names: their rows are absent, their experts have zeros."""

    def __init__(self, weights: Weights, without: Ablation):
        self._weights, self._without = weights, without

    def tensor(self, name: str) -> np.ndarray:
        return self._weights.tensor(name)

    def expert(self, segment: int, number: int, name: str) -> np.ndarray:
        values = self._weights.expert(segment, number, name)
        is_left_out = not self._without.experts.isdisjoint({(segment, number), (segment, None)})
        return np.zeros_like(values) if is_left_out else values

    def rows(self, entry: int) -> tuple[np.ndarray, np.ndarray]:
        keys_U, weight_UW = self._weights.rows(entry)
        return (keys_U[:0], weight_UW[:0]) if entry in self._without.rows else (keys_U, weight_UW)
