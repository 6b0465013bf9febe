"""Rows for pairs of tokens (`model.rows`) of a model that answers: those that training met, found by their keys; others are zeros.

Shape suffixes: E entries of `model.rows`, T tokens, U rows that were met, H hidden.
"""

from __future__ import annotations

import numpy as np

from pangu_sigma.config import Config
from pangu_sigma.generate.weights import Weights
from pangu_sigma.rre.table import RoutingTable


class MetRows:
    """Rows of all entries of a model. nbytes: their size with their keys, mapped files too."""

    def __init__(self, config: Config, table: RoutingTable, weights: Weights):
        self._entries, self._table = config.model.rows, table
        self._met = [_or_nobody(*weights.rows(entry)) for entry in range(len(self._entries))]
        self.nbytes = sum(keys_U.nbytes + weight.nbytes for keys_U, weight in self._met)

    def of(
        self, ids_T: np.ndarray, domains_T: np.ndarray, positions_T: np.ndarray, before_T: np.ndarray
    ) -> np.ndarray | None:
        """Return e, the rows of each token side by side, float32 [T, H]; None for a model without rows. before: id of the token
        before each, any number where its position in its document is 0."""
        if not self._entries:
            return None
        of_each = (each_T[:, None] for each_T in (ids_T, domains_T, positions_T, before_T))
        keys_ET = self._table.row_keys(self._entries, *of_each)[..., 0]
        parts = []
        for (keys_U, weight), keys_T in zip(self._met, keys_ET, strict=True):
            at_T = np.minimum(np.searchsorted(keys_U, keys_T), len(keys_U) - 1)
            part = weight[at_T]
            part[keys_U[at_T] != keys_T] = 0
            parts.append(part)
        return np.concatenate(parts, axis=1)


def _or_nobody(keys_U: np.ndarray, weight_UW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows, or one that no token has, so that there is always a last one."""
    return (keys_U, weight_UW) if len(keys_U) else (np.array([-1]), np.zeros((1, weight_UW.shape[1]), np.float32))
