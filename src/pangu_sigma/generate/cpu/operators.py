"""Operators of `hidden_states` on the CPU: kernels of `ascend_ops/few_rows.py`, and a KV cache of many lanes.

Every layer has its own operators, created once on fixed buffers. Hidden states alternate between two buffers: a norm's input and
output.

Shape suffixes: T tokens of a pass, A of them whose output is wanted, H hidden, L lanes, n heads, S tokens of a lane,
d = H/n, W tokens whose logits are wanted, R rows of a slot.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ascend_ops.few_rows import FFN, LaneAttention, NormRows, Precision, Projection, Projections, TiedHead
from ascend_ops.large_pages import LargePages
from pangu_sigma.bars import Bar
from pangu_sigma.config import Config
from pangu_sigma.generate.cpu.matrices import Matrices
from pangu_sigma.generate.cpu.network import Operators
from pangu_sigma.generate.weights import Weights

PASS_TOKENS = 512
"""Maximum number of tokens of all lanes in one pass; more make no product faster and need larger buffers."""


class _AttentionOperators(NamedTuple):
    """Operators of a layer's attention. project_all: queries, keys and values in one call. project_output: adds to the residual."""

    project_all: Projections
    project_queries: Projections
    project_keys_values: Projections
    attend: LaneAttention
    project_output: Projections


class CpuOperators(Operators):
    """CPU operators of the network, with a KV cache that has a lane for each text.

    weight_bytes: bytes of the weights that the operators read, mapped files too. cache_bytes: size of the full KV cache.
    """

    def __init__(
        self, config: Config, weights: Weights, lanes: int, precision: Precision, mapped: bool, e_TH: np.ndarray | None
    ):
        """mapped: True to read float32 matrices in place, without copies in large pages. e_TH: buffer with the vectors of
        `model.rows` of a pass's tokens (`MetRows.e`); None for a model without rows."""
        model = config.model
        self._model, self._room = model, LargePages()
        self._weights = Matrices(weights, precision, mapped, self._room)
        self._words = self._weights.matrix("embedding")
        self._positions_SH, self._queries_SH = (self._weights.vector(name) for name in ("positions", "query_positions"))
        self._x_TH, self._y_TH, self._q_TH, self._k_TH, self._v_TH, self._mixed_TH = (
            self._room.zeros((PASS_TOKENS, model.hidden)) for _ in range(6)
        )
        self._at_3T, self._output_at_3T = (np.zeros((3, PASS_TOKENS), np.int32) for _ in range(2))
        self._where, self._where_output = (
            tuple(row_T.ctypes.data for row_T in rows_3T) for rows_3T in (self._at_3T, self._output_at_3T)
        )
        self._expert_T = np.zeros(PASS_TOKENS, np.int32)
        self._expert_address = self._expert_T.ctypes.data
        self._tokens = 0
        width = model.hidden // model.heads
        self._cache_LnSd = [
            tuple(self._room.zeros((lanes, model.heads, model.seq_length, width)) for _ in range(2))
            for _ in range(model.layers)
        ]
        self.cache_bytes = sum(array.nbytes for layer in self._cache_LnSd for array in layer)
        self._norms = {"norm": (NormRows(self._x_TH, *self._norm_weights("norm"), self._y_TH), self._y_TH)}
        for i in range(model.layers):
            self._norms |= self._layer_norms(i, e_TH)
        numbers = Bar(range(model.layers), desc="weights", unit="layer", leave=False)
        self._attentions = [self._attention_operators(i) for i in numbers]
        self._ffns = [
            FFN([self._weights.ffn(i)], model.activation, *self._buffers(i)[::-1]) for i in range(model.dense_layers)
        ]
        self._routed = [self._routed_ffns(i, config) for i in range(model.rre_layers)]
        slots = (slice(slot * model.slot_rows, (slot + 1) * model.slot_rows) for slot in range(config.slots))
        self._heads = [TiedHead(self._mixed_TH, self._words.rows(slot)) for slot in slots]
        self.weight_bytes = self._weights.weight_bytes

    def take(self, lane_T: np.ndarray, at_T: np.ndarray, first_T: np.ndarray) -> None:
        """Set for each token of the next pass its lane, its index in the lane, and the index of its document's first token."""
        self._tokens = len(lane_T)
        self._at_3T[:, : self._tokens] = lane_T, at_T, first_T

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the KV cache of the first `tokens` tokens from lane `source` to lane `target`."""
        for keys_and_values in self._cache_LnSd:
            for cache_LnSd in keys_and_values:
                cache_LnSd[target, :, :tokens] = cache_LnSd[source, :, :tokens]

    def logits(self, hidden_TH: np.ndarray, wanted_W: np.ndarray, slot: int) -> np.ndarray:
        """Return the logits [W, R] over the rows of a slot, for the W tokens of the pass with the numbers `wanted_W`."""
        np.take(hidden_TH, wanted_W, axis=0, out=self._mixed_TH[: len(wanted_W)])
        logits_WR = np.empty((len(wanted_W), self._model.slot_rows), np.float32)
        self._heads[slot](len(wanted_W), logits_WR)
        return logits_WR

    def embed(self, words_T: np.ndarray, positions_T: np.ndarray) -> np.ndarray:
        words_TH = self._words.rows(words_T).as_float32()
        np.add(words_TH, self._positions_SH[positions_T], out=self._x_TH[: len(words_T)])
        return self._x_TH

    def queries(self, positions_T: np.ndarray) -> np.ndarray:
        self._mixed_TH[: len(positions_T)] = self._queries_SH[positions_T]
        return self._mixed_TH

    def add_rows(self, layer: int, x_TH: np.ndarray, e_TH: np.ndarray) -> np.ndarray:
        return x_TH  # the norm that follows adds them (`_layer_norms`)

    def norm(self, name: str, x_TH: np.ndarray) -> np.ndarray:
        norm, y = self._norms[name]
        norm(self._tokens)
        return y

    def attention(
        self, layer: int, x_TH: np.ndarray, normed_TH: np.ndarray, query_TH: np.ndarray, outputs_A: np.ndarray | None
    ) -> np.ndarray:
        """Add causal attention over the KV cache to `x_TH`, and return it; tokens `outputs_A` only, which move to the
        front."""
        operators, tokens, where = self._attentions[layer], self._tokens, self._where
        if outputs_A is None:
            operators.project_all(tokens)
        else:
            operators.project_keys_values(tokens)
            where = self._keep_only(outputs_A, (x_TH, query_TH))
            operators.project_queries(self._tokens)
        lanes, at, _ = self._where
        operators.attend(tokens, lanes, at, self._tokens, *where)
        operators.project_output(self._tokens)
        return x_TH

    def _keep_only(self, outputs_A: np.ndarray, hidden_states: tuple[np.ndarray, ...]) -> tuple[int, ...]:
        """Continue the pass with these tokens only, whose hidden states move to the front. Return the addresses of lanes and
        positions."""
        for states_TH in hidden_states:
            states_TH[: len(outputs_A)] = states_TH[outputs_A]
        self._output_at_3T[:, : len(outputs_A)] = self._at_3T[:, outputs_A]
        self._tokens = len(outputs_A)
        return self._where_output

    def ffn(self, layer: int, x_TH: np.ndarray, normed_TH: np.ndarray) -> np.ndarray:
        self._ffns[layer](self._tokens)
        return x_TH

    def routed_ffn(self, layer: int, x_TH: np.ndarray, normed_TH: np.ndarray, experts_sT: np.ndarray) -> np.ndarray:
        for ffn, expert_T in zip(self._routed[layer], experts_sT, strict=True):
            self._expert_T[: self._tokens] = expert_T
            ffn(self._tokens, self._expert_address)
        return x_TH

    def _buffers(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the buffers (residual, normed) of a layer. The norm before the query layer has swapped them."""
        return (self._y_TH, self._x_TH) if layer == self._model.layers - 1 else (self._x_TH, self._y_TH)

    def _layer_norms(self, layer: int, e_TH: np.ndarray | None) -> dict[str, tuple[NormRows, np.ndarray]]:
        """Return the norms of a layer and their output buffers, by cell. The first norm adds the scaled `e_TH` before it."""
        residual_TH, normed_TH = self._buffers(layer)
        scaled_e = None if e_TH is None else (self._weights.vector(f"layers.{layer}.row_scale"), e_TH)
        cells = {f"layers.{layer}.attention_norm": scaled_e, f"layers.{layer}.ffn_norm": None}
        return {
            cell: (NormRows(residual_TH, *self._norm_weights(cell), normed_TH, added), normed_TH)
            for cell, added in cells.items()
        }

    def _attention_operators(self, layer: int) -> _AttentionOperators:
        """Return the attention operators of a layer. The query layer projects the vectors of `queries` to queries, the others
        their normed hidden states."""
        residual_TH, normed_TH = self._buffers(layer)
        query_TH = self._mixed_TH if layer == self._model.layers - 1 else normed_TH
        query = self._projection(layer, "query", query_TH, self._q_TH)
        key = self._projection(layer, "key", normed_TH, self._k_TH)
        value = self._projection(layer, "value", normed_TH, self._v_TH)
        output = self._projection(layer, "output", self._mixed_TH, residual_TH, adds=True)
        return _AttentionOperators(
            project_all=Projections([query, key, value]),
            project_queries=Projections([query]),
            project_keys_values=Projections([key, value]),
            attend=LaneAttention(self._q_TH, self._k_TH, self._v_TH, self._mixed_TH, *self._cache_LnSd[layer]),
            project_output=Projections([output]),
        )

    def _projection(self, layer: int, name: str, x_TH: np.ndarray, y_TH: np.ndarray, adds: bool = False) -> Projection:
        """Return a linear layer of a layer's attention, with its weights. adds: True to add the result to `y_TH`."""
        cell = f"layers.{layer}.attention.{name}"
        return Projection(
            x_TH, self._weights.matrix(f"{cell}.weight"), self._weights.vector(f"{cell}.bias"), y_TH, adds
        )

    def _routed_ffns(self, layer: int, config: Config) -> list[FFN]:
        """Return the FFN of each segment of an RRE layer; each adds to the residual. layer: index among the RRE layers."""
        residual_TH, normed_TH = self._buffers(self._model.dense_layers + layer)
        ffns = []
        segments = self._model.segments_of(layer)
        for n in segments:
            experts = range(config.stored_experts(self._model.routed[n]))
            numbers = Bar(experts, desc=f"experts of RRE layer {layer}", unit="expert", leave=False)
            weights = [self._weights.expert(n, number, bias=n == segments.start) for number in numbers]
            ffns.append(FFN(weights, self._model.activation, normed_TH, residual_TH))
        return ffns

    def _norm_weights(self, cell: str) -> tuple[np.ndarray, np.ndarray]:
        return self._weights.vector(f"{cell}.gain"), self._weights.vector(f"{cell}.bias")
