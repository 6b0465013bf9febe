"""Weights of a model in the form that the CPU kernels of `ascend_ops/few_rows.py` read."""

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

    weight_bytes: bytes of the weights returned so far, mapped files too.
    """

    def __init__(self, weights: Weights, precision: Precision, mapped: bool, room: LargePages):
        """mapped: True to return float32 matrices in place, without copies in `room`. room: memory of large pages for copies."""
        assert not mapped or precision == "float32"
        self._weights, self._precision, self._mapped, self._room = weights, precision, mapped, room
        self._export: StoredExport | None = None  # set if its matrices have the precision and need no rounding
        if isinstance(weights, StoredExport) and weights.precision == precision and not mapped:
            self._export = weights
        self.weight_bytes = 0

    def vector(self, name: str) -> np.ndarray:
        """Return a dense tensor, such as a bias, as float32."""
        return self._as_float32(self._weights.tensor(name))

    def matrix(self, name: str) -> Matrix:
        """Return a dense matrix in the kernels' precision."""
        if self._export is not None:
            return self._copy_stored(self._export.matrix(name))
        return self._round(self._weights.tensor(name))

    def ffn(self, layer: int) -> FfnWeights:
        """Return the FFN weights of a dense layer."""
        w1, w2 = (self.matrix(f"layers.{layer}.ffn.{name}") for name in ("w1", "w2"))
        b1, b2 = (self.vector(f"layers.{layer}.ffn.{name}") for name in ("b1", "b2"))
        return FfnWeights(w1, b1, w2, b2)

    def expert(self, segment: int, number: int, bias: bool) -> FfnWeights:
        """Return the FFN weights of an expert. segment: index over all RRE layers. bias: False for zeros as b2, if it has none."""
        w1, w2 = (self._expert_matrix(segment, number, name) for name in ("w1", "w2"))
        b1 = self._as_float32(self._weights.expert(segment, number, "b1"))
        if not bias:
            return FfnWeights(w1, b1, w2, np.zeros(w2.shape[1], np.float32))
        return FfnWeights(w1, b1, w2, self._as_float32(self._weights.expert(segment, number, "b2")))

    def _expert_matrix(self, segment: int, number: int, name: str) -> Matrix:
        """Return a matrix of an expert in the kernels' precision."""
        if self._export is not None:
            return self._copy_stored(self._export.matrix(f"experts.{segment}.{name}", number))
        return self._round(self._weights.expert(segment, number, name))

    def _round(self, values: np.ndarray) -> Matrix:
        """Return float32 values in the kernels' precision: in place if they are mapped, else as a copy."""
        if self._mapped:
            return Matrix(self._as_float32(values))
        matrix = Matrix.copy_of(np.asarray(values), self._precision, self._room)
        return self._count_copy(matrix, values)

    def _copy_stored(self, stored: Matrix) -> Matrix:
        """Copy a matrix that an export stores in the kernels' precision."""
        return self._count_copy(stored.copy_to(self._room), stored.values)

    def _count_copy(self, copy: Matrix, source: np.ndarray) -> Matrix:
        """Count the bytes of a copy, release the pages of its mapped source, and return the copy."""
        release_pages(source)
        self.weight_bytes += copy.nbytes
        return copy

    def _as_float32(self, values: np.ndarray) -> np.ndarray:
        """Return the values as a contiguous float32 array, and count its bytes. Mapped values of that kind are not copied."""
        contiguous = np.ascontiguousarray(np.asarray(values), np.float32)
        self.weight_bytes += contiguous.nbytes
        return contiguous
