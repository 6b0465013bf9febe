"""The weights of a model that is used and not trained, wherever they lie.

Linear layers are [in, out]; w1 and w2 of an FFN are [F, H]; the word table is [slots · R, H]. H hidden, F ffn, R rows of a slot.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Weights(Protocol):
    """The weights of a model, which are read when they are asked for: those of a `StoredModel`, for instance."""

    def tensor(self, name: str) -> np.ndarray:
        """A dense tensor by its name in the network."""

    def expert(self, layer: int, number: int, name: str) -> np.ndarray:
        """A tensor of an expert. layer: of the RRE layers. number: of the expert in the layer."""
