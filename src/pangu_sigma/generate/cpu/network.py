"""Network without MindSpore on the CPU: the sequence of its operators, for any implementation of them.

exact.py has operators that add in one order, operators.py fast ones with a KV cache. The network of training is
`model/pangu_sigma.py`; tests compare them.

Shape suffixes: T tokens, A tokens whose output is wanted, H hidden, N segments of all RRE layers, s segments of one.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from pangu_sigma.sections import ModelConfig

LAYER_NORM_EPSILON = 1e-5
"""Epsilon of LayerNorm, as in training."""


class Operators(Protocol):
    """Interface to the operators of the network, which take and return hidden states [T, H] in float32: x, the residual stream, and
    its norm. An operator may modify x, and the hidden states that it returned before."""

    def embed(self, words_T: np.ndarray, positions_T: np.ndarray) -> np.ndarray:
        """Return the sums of vectors of the word table of all slots and of the position table, [T, H]."""

    def queries(self, positions_T: np.ndarray) -> np.ndarray:
        """Return vectors of the query layer's position table, [T, H]."""

    def add_rows(self, layer: int, x_TH: np.ndarray, e_TH: np.ndarray) -> np.ndarray:
        """Return x + the layer's scale · e, the vectors of `model.rows` of each token."""

    def norm(self, name: str, x_TH: np.ndarray) -> np.ndarray:
        """Apply the LayerNorm of the network's cell `name` to hidden states."""

    def attention(
        self, layer: int, x_TH: np.ndarray, normed_TH: np.ndarray, query_TH: np.ndarray, outputs_A: np.ndarray | None
    ) -> np.ndarray:
        """Return x + causal attention of a layer. query_TH: vectors that become queries. normed_TH: vectors for keys and values.

        outputs_A: indices of the tokens to return, in order; later operators get only these tokens. None: all tokens.
        """

    def ffn(self, layer: int, x_TH: np.ndarray, normed_TH: np.ndarray) -> np.ndarray:
        """Return x + the FFN of a dense layer."""

    def routed_ffn(self, layer: int, x_TH: np.ndarray, normed_TH: np.ndarray, experts_sT: np.ndarray) -> np.ndarray:
        """Return x + the FFN of each token's expert. layer: index among the RRE layers."""


def hidden_states(
    model: ModelConfig,
    operators: Operators,
    words_T: np.ndarray,
    positions_T: np.ndarray,
    experts_NT: np.ndarray,
    e_TH: np.ndarray | None,
    outputs_A: np.ndarray | None = None,
    trace: list[np.ndarray] | None = None,
) -> np.ndarray:
    """Run the network without MindSpore, and return the hidden states [T, H] after the query layer (the last one).

    words_T: index of each token in the word table of all slots. positions_T: position of each token in its document. experts_NT:
    expert of each token in each segment, numbered over the segment. e_TH: vectors of `model.rows` of each token (`MetRows.of`);
    None for a model without rows. outputs_A: indices, in order, of the A tokens whose hidden states [A, H] are returned; None for
    all. Of other tokens the query layer computes only keys and values. trace: list to which copies of the hidden states before
    the first layer and after each layer are appended.
    """
    x_TH = operators.embed(words_T, positions_T)
    if trace is not None:
        trace.append(x_TH[: len(words_T)].copy())  # operators may return a larger buffer
    for layer in range(model.layers):
        is_query_layer = layer == model.layers - 1
        if is_query_layer:
            x_TH = operators.norm("norm", x_TH)
        if e_TH is not None:
            x_TH = operators.add_rows(layer, x_TH, e_TH)
        normed_TH = operators.norm(f"layers.{layer}.attention_norm", x_TH)
        query_TH = operators.queries(positions_T) if is_query_layer else normed_TH
        layer_outputs_A = outputs_A if is_query_layer else None
        x_TH = operators.attention(layer, x_TH, normed_TH, query_TH, layer_outputs_A)
        if layer_outputs_A is not None:  # x is [A, H] from here on
            experts_NT = experts_NT[:, layer_outputs_A]
            if not len(layer_outputs_A):
                break  # only keys and values were needed
        normed_TH = operators.norm(f"layers.{layer}.ffn_norm", x_TH)
        if layer < model.dense_layers:
            x_TH = operators.ffn(layer, x_TH, normed_TH)
        else:
            rre_layer = layer - model.dense_layers
            segments = model.segments_of(rre_layer)
            x_TH = operators.routed_ffn(rre_layer, x_TH, normed_TH, experts_NT[segments.start : segments.stop])
        if trace is not None:
            trace.append(x_TH[: len(words_T)].copy())
    return x_TH
