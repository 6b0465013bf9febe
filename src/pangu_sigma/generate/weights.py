"""Interface to the weights of a model for inference, whatever their storage.

Linear layers are [in, out]; w1 and w2 of an FFN are [F, H]; the embedding table is [slots · R, H] (hidden H, ffn F, rows R).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Weights(Protocol):
    """Interface to weights of a model that are read on request, as by `StoredModel`."""

    def tensor(self, name: str) -> np.ndarray:
        """Return a dense tensor by its name in the network."""

    def expert(self, segment: int, number: int, name: str) -> np.ndarray:
        """Return a tensor of an expert. segment: index over all RRE layers. number: index of the expert in it."""

    def rows(self, entry: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the keys [U], ascending, int64, and weights [U, W] of the rows of an entry of `model.rows` that a token met."""
