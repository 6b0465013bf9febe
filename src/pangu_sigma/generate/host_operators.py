"""The operators of the network on the CPU, with a KV cache for many lanes. (NumPy; kernels follow.)"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ascend_ops.activation import activation_oracle
from pangu_sigma.config import ModelConfig
from pangu_sigma.generate.host_network import LAYER_NORM_EPSILON
from pangu_sigma.generate.weights import Weights


class HostOperators:
    """The operators of `hidden_states` for new tokens of texts in lanes."""

    def __init__(self, model: ModelConfig, weights: Weights, lanes: int):
        self.model, self._weights = model, weights
        shape = model.layers, 2, lanes, model.seq_length, model.heads, model.hidden // model.heads
        self.cache = np.zeros(shape, np.float32)
        self._lane_T = self._at_T = self._first_T = np.zeros(0, np.int64)

    def take(self, lane_T: np.ndarray, at_T: np.ndarray, first_T: np.ndarray) -> None:
        """Say where the tokens of the next pass go: lane, number in it, and that of the first token of its document."""
        self._lane_T, self._at_T, self._first_T = lane_T, at_T, first_T

    def copy(self, source: int, target: int, tokens: int) -> None:
        self.cache[:, :, target, :tokens] = self.cache[:, :, source, :tokens]

    def logits(self, hidden_WH: np.ndarray, first: int) -> np.ndarray:
        rows = self.model.slot_rows
        return hidden_WH @ self._weights.tensor("embedding")[first : first + rows].T

    def embed(self, rows_T: np.ndarray, positions_T: np.ndarray) -> np.ndarray:
        return self._weights.tensor("embedding")[rows_T] + self._weights.tensor("positions")[positions_T]

    def queries(self, positions_T: np.ndarray) -> np.ndarray:
        return self._weights.tensor("query_positions")[positions_T]

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred_TH = x - x.mean(axis=-1, keepdims=True)
        variance_T1 = (centred_TH * centred_TH).mean(axis=-1, keepdims=True)
        scaled = centred_TH / np.sqrt(variance_T1 + np.float32(LAYER_NORM_EPSILON))
        return scaled * self._weights.tensor(f"{name}.gain") + self._weights.tensor(f"{name}.bias")

    def attention(self, layer: int, residual: np.ndarray, normed: np.ndarray, query: np.ndarray) -> np.ndarray:
        at, heads = f"layers.{layer}.attention", self.model.heads
        q, k, v = (
            self._linear(f"{at}.{name}", source).reshape(len(normed), heads, -1)
            for name, source in (("query", query), ("key", normed), ("value", normed))
        )
        keys, values = self.cache[layer]
        keys[self._lane_T, self._at_T], values[self._lane_T, self._at_T] = k, v
        mixed = np.empty_like(q)
        for t, (lane, end, first) in enumerate(zip(self._lane_T, self._at_T + 1, self._first_T, strict=True)):
            scores = np.einsum("nd,snd->ns", q[t], keys[lane, first:end]) / np.float32(np.sqrt(q.shape[-1]))
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed[t] = np.einsum("ns,snd->nd", weights / weights.sum(axis=-1, keepdims=True), values[lane, first:end])
        return residual + self._linear(f"{at}.output", mixed.reshape(normed.shape))

    def ffn(self, layer: int, residual: np.ndarray, normed: np.ndarray) -> np.ndarray:
        return residual + self._ffn(normed, lambda name: self._weights.tensor(f"layers.{layer}.ffn.{name}"))

    def routed_ffn(self, layer: int, residual: np.ndarray, normed: np.ndarray, expert_T: np.ndarray) -> np.ndarray:
        y_TH = np.empty_like(normed)
        for number in np.unique(expert_T).tolist():
            mine = expert_T == number
            y_TH[mine] = self._ffn(normed[mine], partial(self._weights.expert, layer, number))
        return residual + y_TH

    def _ffn(self, x_TH: np.ndarray, tensor: Callable[[str], np.ndarray]) -> np.ndarray:
        inner = x_TH @ tensor("w1").T + tensor("b1")
        return activation_oracle(inner, self.model.activation) @ tensor("w2") + tensor("b2")

    def _linear(self, at: str, x_TH: np.ndarray) -> np.ndarray:
        return x_TH @ self._weights.tensor(f"{at}.weight") + self._weights.tensor(f"{at}.bias")
