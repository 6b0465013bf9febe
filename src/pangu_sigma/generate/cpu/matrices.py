"""Weights of a model as the kernels of `ascend_ops/few_rows.py` read them, from any source."""

from __future__ import annotations

import numpy as np

from ascend_ops.few_rows import FfnWeights, Matrix, Precision
from ascend_ops.large_pages import LargePages
from pangu_sigma.checkpoint.lazy import release_pages
from pangu_sigma.generate.weights import Weights
from pangu_sigma.stored.export import StoredExport


class Matrices:
    """Weights of a model for the CPU kernels of few_rows.py: matrices in one precision, vectors in float32.

    Matrices of an export that is stored in this precision are used bit for bit; others are rounded from float32.

    weight_bytes: bytes of the weights returned so far, mapped files too. copied_bytes: bytes of the copies in memory.
    """

    def __init__(self, weights: Weights, precision: Precision, mapped: bool, room: LargePages):
        """mapped: True to return float32 matrices in place, without copies in `room`. room: memory of large pages for copies."""
        assert not mapped or precision == "float32"
        self._weights, self._precision, self._mapped, self._room = weights, precision, mapped, room
        self._kept: StoredExport | None = None
        if isinstance(weights, StoredExport) and weights.precision == precision and not mapped:
            self._kept = weights
        self.weight_bytes = self.copied_bytes = 0

    def vector(self, name: str) -> np.ndarray:
        """Return a dense tensor, such as a bias, as float32."""
        return self._plain(self._weights.tensor(name))

    def matrix(self, name: str) -> Matrix:
        """Return a dense matrix in the kernels' precision."""
        if self._kept is not None:
            return self._copied(self._kept.matrix(name))
        return self._rounded(self._weights.tensor(name))

    def ffn(self, layer: int) -> FfnWeights:
        """Return the FFN weights of a dense layer."""
        w1, w2 = (self.matrix(f"layers.{layer}.ffn.{name}") for name in ("w1", "w2"))
        b1, b2 = (self.vector(f"layers.{layer}.ffn.{name}") for name in ("b1", "b2"))
        return FfnWeights(w1, b1, w2, b2)

    def expert(self, segment: int, number: int, bias: bool) -> FfnWeights:
        """Return the FFN weights of an expert. segment: index among those of all RRE layers. bias: False for a b2 of zeros."""
        w1, w2 = (self._expert_matrix(segment, number, name) for name in ("w1", "w2"))
        b1 = self._plain(self._weights.expert(segment, number, "b1"))
        if not bias:
            return FfnWeights(w1, b1, w2, np.zeros(w2.shape[1], np.float32))
        return FfnWeights(w1, b1, w2, self._plain(self._weights.expert(segment, number, "b2")))

    def _expert_matrix(self, segment: int, number: int, name: str) -> Matrix:
        if self._kept is not None:
            return self._copied(self._kept.matrix(f"experts.{segment}.{name}", number))
        return self._rounded(self._weights.expert(segment, number, name))

    def _rounded(self, values: np.ndarray) -> Matrix:
        if self._mapped:
            return Matrix(self._plain(values))
        matrix = Matrix.copy_of(np.asarray(values), self._precision, self._room)
        return self._counted(matrix, values)

    def _copied(self, kept: Matrix) -> Matrix:
        return self._counted(kept.copied(self._room), kept.values)

    def _counted(self, copy: Matrix, source: np.ndarray) -> Matrix:
        release_pages(source)
        self.weight_bytes += copy.nbytes
        self.copied_bytes += copy.nbytes
        return copy

    def _plain(self, values: np.ndarray) -> np.ndarray:
        """Return the values as a contiguous float32 array of no subclass; without a copy if they already are, even if mapped."""
        plain = np.ascontiguousarray(np.asarray(values), np.float32)
        self.weight_bytes += plain.nbytes
        if not np.may_share_memory(plain, values):
            self.copied_bytes += plain.nbytes
        return plain
