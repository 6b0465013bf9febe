"""Rows for pairs of tokens (`model.rows`) of a model that answers: those that training met, found by their keys; others are zeros.

Shape suffixes: T tokens, H hidden.
"""

from __future__ import annotations

import numpy as np

from ascend_ops.few_rows import FindRows, KeyedRows
from pangu_sigma.config import Config
from pangu_sigma.generate.weights import Weights
from pangu_sigma.rre.table import RoutingTable


class MetRows:
    """Rows of all entries of `model.rows`. nbytes: their size with their keys, mapped files too. e: buffer in which `of` puts the
    vectors of tokens, float32 [tokens, H]; None for a model without rows."""

    def __init__(self, config: Config, table: RoutingTable, weights: Weights, tokens: int = 0):
        """tokens: maximum number of tokens in a call of `of`; 0 stands for model.seq_length."""
        self._find, self.e, self.nbytes = None, None, 0
        if not config.model.rows:
            return
        assert table.row_EV is not None and table.before_EV1 is not None
        tables = zip(config.model.rows, table.row_EV, table.before_EV1, strict=True)
        entries = []
        for e, (entry, row_V, before_V1) in enumerate(tables):
            first_row_step = entry.rows if entry.kind == "own" else 0  # from a domain's keys to the next domain's
            entries.append(KeyedRows(row_V, before_V1, entry.rows, first_row_step, *weights.rows(e)))
        self._find = FindRows(entries, tokens or config.model.seq_length)
        self.e, self.nbytes = self._find.e, sum(entry.keys_U.nbytes + entry.weight_UW.nbytes for entry in entries)

    def of(
        self, ids_T: np.ndarray, domains_T: np.ndarray, positions_T: np.ndarray, before_T: np.ndarray
    ) -> np.ndarray | None:
        """Return for each token its rows of all entries side by side, float32 [T, H]; None for a model without rows. The next call
        overwrites them. before_T: id of the token before each token; any number where the token's position in its document is 0."""
        return None if self._find is None else self._find(ids_T, domains_T, positions_T, before_T)
