"""The weights of a model that is used and not trained, wherever they lie.

Linear layers are [in, out]; w1 and w2 of an FFN are [F, H]; the word table is [slots · R, H]. H hidden, F ffn, R rows of a slot.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import numpy as np

from pangu_sigma.checkpoint.checkpoint import Checkpoint
from pangu_sigma.checkpoint.parts import EXPERTS, WEIGHTS
from pangu_sigma.checkpoint.whole import whole_array


class Weights(Protocol):
    """The weights of a model, which are read when they are asked for."""

    def tensor(self, name: str) -> np.ndarray:
        """A dense tensor by its name in the network."""

    def expert(self, layer: int, number: int, name: str) -> np.ndarray:
        """A tensor of an expert. layer: of the RRE layers. number: of the expert in the layer."""


class SavedWeights:
    """The weights of a checkpoint: arrays of mapped files, and copies only of what several files hold together."""

    def __init__(self, checkpoint: Checkpoint):
        self._dense = checkpoint.saved(WEIGHTS)
        self._layer = cache(lambda layer: checkpoint.saved(f"{EXPERTS}{layer}"))

    def tensor(self, name: str) -> np.ndarray:
        return whole_array(self._dense[name], name).read()

    def expert(self, layer: int, number: int, name: str) -> np.ndarray:
        return whole_array(self._layer(layer)[name], name).part(number, name).read()
