"""One level of hashing as a peer of RRE: a token id has one of all K experts of a layer, the same in every domain.

The first layers of DeepSeek-V4 route so, by a fixed table from token id to expert (`tid2eid`), after Hash Layers (Roller et al.,
2021). The tables are drawn as `routing.table=random` draws those of one domain that has all experts.
"""

from __future__ import annotations

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.data.batches import BatchLoader
from pangu_sigma.rre.table import RoutingTable, draw_tables
from pangu_sigma.sections import RoutingConfig
from pangu_sigma.train.loop import Trainer


class HashTable(RoutingTable):
    """Tables for a single pool: first_NDV and spread_DV have D = 1, and `experts` is K."""

    def route(self, ids: np.ndarray, domains: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Expert of every token in every layer, 0 … K - 1; `domains` does not matter. As `RoutingTable.route` otherwise."""
        return super().route(ids, np.zeros_like(domains), positions)


def hash_table(config: Config, vocabulary: int) -> HashTable:
    """The tables of a configuration, from routing.seed + layer."""
    routing = RoutingConfig(table="random", seed=config.routing.seed)
    drawn = draw_tables(routing, config.model.rre_layers, 1, vocabulary, config.experts, None)
    return HashTable(drawn.first_NDV, drawn.spread_DV, drawn.experts)


class HashTrainer(Trainer):
    """A run that is routed so."""

    def open_batches(self, split: str) -> BatchLoader:
        """The product's batches, with another table. `ecss.enabled=false`: all experts have to be active in each step."""
        batches = super().open_batches(split)
        batches.table = hash_table(self.config, batches.tokenizer.size)
        return batches
