"""The float32 weights of a model whose matrices were rounded: what less precise ones stand for."""

from __future__ import annotations

import numpy as np

from ascend_ops.few_rows import Matrix, Precision
from ascend_ops.large_pages import LargePages
from pangu_sigma.generate.weights import Weights


class RoundedWeights:
    """`Weights`, of which every matrix but the tables of positions is as near as `precision` allows."""

    def __init__(self, weights: Weights, precision: Precision):
        self._weights, self._precision, self._room = weights, precision, LargePages()

    def tensor(self, name: str) -> np.ndarray:
        values = self._weights.tensor(name)
        return values if "positions" in name else self._rounded(values)

    def expert(self, layer: int, number: int, name: str) -> np.ndarray:
        return self._rounded(self._weights.expert(layer, number, name))

    def _rounded(self, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values)
        return values if values.ndim < 2 else Matrix.copy_of(values, self._precision, self._room).as_float32()
