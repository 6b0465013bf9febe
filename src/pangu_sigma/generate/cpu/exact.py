"""Reference network in NumPy float32 for one short text, whose sums do not depend on the number of rows that an expert gets.

The training kernels add an expert's rows in an order that depends on their number, so K equal experts equal their parent only up to
rounding. Here each token passes its FFN alone, so a parent and its child, or a model and its extract, give equal bits where the
models are equal. It holds one tensor at a time, so the model may exceed the memory. It shares no code with the graphs.

Shape suffixes: T tokens, A tokens whose output is wanted, H hidden, F ffn, n heads, d = H/n, N segments of all RRE layers,
s segments of one, C candidates, P a part of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ascend_ops.activation import activation_oracle
from pangu_sigma.checkpoint.lazy import release_pages
from pangu_sigma.generate.cpu.network import LAYER_NORM_EPSILON, Operators, hidden_states
from pangu_sigma.generate.weights import Weights
from pangu_sigma.sections import ModelConfig


class ExactModel(Operators):
    """Reference network in NumPy for one text, and its operators for `hidden_states`. It computes the FFN of each token alone, so
    that the result has the same bits whatever number of tokens goes to an expert."""

    def __init__(self, model: ModelConfig, weights: Weights, activation: str):
        """model: sizes of the network. activation: the GELU variant to use, whatever `model` says."""
        self.model, self.weights, self._activation = model, weights, activation

    def logits(
        self,
        words_T: np.ndarray,
        experts_NT: np.ndarray,
        candidates_C: np.ndarray,
        e_TH: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the logits of candidates for the token that follows each token of a text, float32 [T, C].

        words_T: index of each token of the text in the word table of all slots. experts_NT: expert of each token in each segment,
        [0, T] for a dense model. candidates_C: indices of the candidates in that table. e_TH: vectors of `model.rows` of each
        token (`MetRows.of`); None for a model without them.
        """
        hidden_TH = hidden_states(self.model, self, words_T, np.arange(len(words_T)), experts_NT, e_TH)
        table = self.weights.tensor("embedding")
        logits_TC = np.empty((len(hidden_TH), len(candidates_C)), np.float32)
        for first in range(0, len(candidates_C), _CANDIDATES):
            columns = slice(first, first + _CANDIDATES)
            vectors_PH = np.asarray(table[candidates_C[columns]], np.float32)
            for t, hidden_H in enumerate(hidden_TH):
                # no matrix product: BLAS would add in an order that depends on the number of candidates
                logits_TC[t, columns] = (vectors_PH * hidden_H).sum(axis=-1)
        release_pages(table)
        return logits_TC

    def embed(self, words_T: np.ndarray, positions_T: np.ndarray) -> np.ndarray:
        """Return the sums of word and position vectors, [T, H]. The mapped table's pages are released once they are read."""
        table = self.weights.tensor("embedding")
        x_TH = np.asarray(table[words_T], np.float32) + self._tensor("positions")[positions_T]
        release_pages(table)
        return x_TH

    def queries(self, positions_T: np.ndarray) -> np.ndarray:
        return self._tensor("query_positions")[positions_T]

    def ffn(self, layer: int, x_TH: np.ndarray, normed_TH: np.ndarray) -> np.ndarray:
        """Return x + the FFN of a dense layer, each token alone."""
        return x_TH + self._ffn(normed_TH, lambda name: self.weights.tensor(f"layers.{layer}.ffn.{name}"))

    def routed_ffn(self, layer: int, x_TH: np.ndarray, normed_TH: np.ndarray, experts_sT: np.ndarray) -> np.ndarray:
        """Return x + the FFN of each token's experts. experts_sT: expert of each token in each segment of the layer.

        The units of a token's experts are joined to one FFN with one sum, so that segments cut from an FFN give its bits.
        """
        y_TH = np.empty_like(normed_TH)
        for experts_s in np.unique(experts_sT, axis=1).T:  # the tokens with the same experts share a joined FFN
            has_experts_T = (experts_sT == experts_s[:, None]).all(axis=0)
            joined_tensor = partial(self._joined_tensor, layer, experts_s.tolist())
            y_TH[has_experts_T] = self._ffn(normed_TH[has_experts_T], joined_tensor)
        return x_TH + y_TH

    def _joined_tensor(self, layer: int, experts: list[int], name: str) -> np.ndarray:
        """Join a tensor of experts, one of each segment of an RRE layer, along the inner units of the FFN. name: w1, b1, w2, or b2,
        which has no inner units, and which only the first expert has."""
        segments = self.model.segments_of(layer)
        if name == "b2" or len(segments) == 1:  # no copy, so that `_ffn` can release the pages of a mapped tensor
            return self.weights.expert(segments.start, experts[0], name)
        return np.concatenate([self.weights.expert(n, e, name) for n, e in zip(segments, experts, strict=True)])

    def _ffn(self, x_TH: np.ndarray, tensor: Callable[[str], np.ndarray]) -> np.ndarray:
        """Return the FFN of each token, computed alone. tensor: function that returns w1 [F, H], b1, w2 [F, H] or b2 by name."""
        w1, b1, w2, b2 = (tensor(name) for name in ("w1", "b1", "w2", "b2"))
        # C order: BLAS adds in another order for a transposed matrix, as in some published files.
        up_FH, down_FH = np.ascontiguousarray(w1, np.float32), np.ascontiguousarray(w2, np.float32)
        y_TH = np.empty_like(x_TH)
        for t, x_H in enumerate(np.ascontiguousarray(x_TH)):
            inner_F = (up_FH @ x_H + np.asarray(b1, np.float32)).astype(np.float64)
            with np.errstate(over="ignore"):
                gelu_F = activation_oracle(inner_F, self._activation).astype(np.float32)
            y_TH[t] = gelu_F @ down_FH + np.asarray(b2, np.float32)
        for values in (w1, w2):
            release_pages(values)
        return y_TH

    def attention(
        self, layer: int, x_TH: np.ndarray, normed_TH: np.ndarray, query_TH: np.ndarray, outputs_A: np.ndarray | None
    ) -> np.ndarray:
        """Return x + causal attention of a layer, of the tokens `outputs_A` only (None: all). Attention is computed for all
        tokens in any case, because BLAS adds in another order for few of them."""
        cell, heads = f"layers.{layer}.attention", self.model.heads
        q, k, v = (
            self._linear(f"{cell}.{name}", source_TH).reshape(len(normed_TH), heads, -1).transpose(1, 0, 2)
            for name, source_TH in (("query", query_TH), ("key", normed_TH), ("value", normed_TH))
        )
        scores_nTT = (q / np.float32(np.sqrt(q.shape[-1]))) @ k.transpose(0, 2, 1)
        scores_nTT[:, np.triu(np.ones(scores_nTT.shape[1:], bool), 1)] = -np.inf
        weights_nTT = np.exp(scores_nTT - scores_nTT.max(axis=-1, keepdims=True))
        weights_nTT /= weights_nTT.sum(axis=-1, keepdims=True)
        mixed_TH = (weights_nTT @ v).transpose(1, 0, 2).reshape(normed_TH.shape)
        sum_TH = x_TH + self._linear(f"{cell}.output", mixed_TH)
        return sum_TH if outputs_A is None else sum_TH[outputs_A]

    def _linear(self, cell: str, x_TH: np.ndarray) -> np.ndarray:
        """Apply the linear layer with this name in the network."""
        weight = self.weights.tensor(f"{cell}.weight")
        y_TH = x_TH @ np.ascontiguousarray(weight, np.float32) + self._tensor(f"{cell}.bias")
        release_pages(weight)
        return y_TH

    def add_rows(self, layer: int, x_TH: np.ndarray, e_TH: np.ndarray) -> np.ndarray:
        return x_TH + self._tensor(f"layers.{layer}.row_scale") * e_TH

    def norm(self, name: str, x_TH: np.ndarray) -> np.ndarray:
        """Apply the LayerNorm with this name in the network."""
        centred_TH = x_TH - x_TH.mean(axis=-1, keepdims=True)
        variance_T1 = (centred_TH * centred_TH).mean(axis=-1, keepdims=True)
        scaled_TH = centred_TH / np.sqrt(variance_T1 + np.float32(LAYER_NORM_EPSILON)) * self._tensor(f"{name}.gain")
        return scaled_TH + self._tensor(f"{name}.bias")

    def _tensor(self, name: str) -> np.ndarray:
        return np.asarray(self.weights.tensor(name), np.float32)


_CANDIDATES = 4096
"""Number of candidates whose logits are computed together: the word table may exceed the memory."""
