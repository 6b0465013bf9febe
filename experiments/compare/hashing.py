"""Keys that the product cannot be asked for: hashing as a peer of RRE, and a key that cheats.

`hash`: a token id has one of all K experts of a layer, the same in every domain. The first layers of DeepSeek-V4 route so, by a
fixed table from token id to expert (`tid2eid`), after Hash Layers (Roller et al., 2021). The tables are those that the product
draws for a common segment.

`leak`: the same table, read at the *next* token, which the model is to predict. It shows that the experiment would see a leak: its
loss has to be far below that of all others (Roller et al. have such an oracle, too). `row_leak`: rows (`model.rows`) by the next
token, and the pair of it and the token itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.data.batches import BatchLoader
from pangu_sigma.rre.table import RoutingTable, draw_tables
from pangu_sigma.sections import RoutingConfig, RowsConfig
from pangu_sigma.training.loop import Trainer


class LeakingTable(RoutingTable):
    """Tables that are read one token too late."""

    def route(self, ids: np.ndarray, domains: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Expert of the token after each one; the last of a sequence has the first's. As `RoutingTable.route` otherwise."""
        return super().route(np.roll(ids, -1, axis=-1), domains, positions)


def hash_table(config: Config, vocabulary: int, kind: type[RoutingTable] = RoutingTable) -> RoutingTable:
    """The tables of a configuration, from routing.seed + layer: one common segment of all its experts, and no own one."""
    routing, layers = RoutingConfig(table="random", seed=config.routing.seed), config.model.rre_layers
    drawn = draw_tables(routing, layers, len(config.domains), vocabulary, 1, None, ["common"], config.experts)
    return kind(**vars(drawn))


class HashTrainer(Trainer):
    """A run that is routed so."""

    table: type[RoutingTable] = RoutingTable

    def open_batches(self, split: str) -> BatchLoader:
        """The product's batches, with another table. `ecss.enabled=false`: all experts have to be active in each step."""
        batches = super().open_batches(split)
        batches.table = hash_table(self.config, batches.tokenizer.size, self.table)
        return batches


class LeakTrainer(HashTrainer):
    """A run whose routing key is the token to predict."""

    table = LeakingTable


class LeakingRows(RoutingTable):
    """Tables whose keys of rows are read one token too late."""

    def row_keys(self, entries: Sequence[RowsConfig], ids: np.ndarray, *others: Any) -> np.ndarray:
        """Rows of the token after each one. As `RoutingTable.row_keys` otherwise."""
        return super().row_keys(entries, np.roll(ids, -1, axis=-1), *others)


class RowLeakTrainer(Trainer):
    """A run whose rows are those of the token to predict."""

    def open_batches(self, split: str) -> BatchLoader:
        """The product's batches, with the leaking keys."""
        batches = super().open_batches(split)
        batches.table = LeakingRows(**vars(batches.table))
        return batches
