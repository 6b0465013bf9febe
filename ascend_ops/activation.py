"""Activation functions of the FFN in NumPy, the oracle of the kernels."""

from __future__ import annotations

import math

import numpy as np


def activation_oracle(x: np.ndarray, activation: str) -> np.ndarray:
    """Apply the activation in NumPy, in the precision of x, for tests of the kernels and for the reference network."""
    if activation == "fast_gelu":
        return x / (1 + np.exp(-1.702 * x))
    if activation == "tanh":  # x/2 · (1 + tanh(z/2)), without cancellation
        return x / (1 + np.exp(-math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)))
    assert activation == "erf", activation
    return (x / 2 * np.vectorize(math.erfc, otypes=[float])(-x / math.sqrt(2))).astype(x.dtype)
