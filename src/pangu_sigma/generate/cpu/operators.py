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
        """Create the operators of all layers on buffers for one pass, which computes at most PASS_TOKENS tokens together. mapped:
        True to read float32 matrices in place, without copies in large pages. e_TH: buffer with the vectors of `model.rows` of a
        pass's tokens (`MetRows.e`); None for a model without rows."""
        model = config.model
        self._model, self._room = model, LargePages()
        self._weights = Matrices(weights, precision, mapped, self._room)
        self._words = self._weights.matrix("embedding")
        self._positions_SH, self._queries_SH = (self._weights.vector(name) for name in ("positions", "query_positions"))
        self._x_TH, self._y_TH, self._q_TH, self._k_TH, self._v_TH, self._mixed_TH = (
            self._room.zeros((PASS_TOKENS, model.hidden)) for _ in range(6)
        )
        # rows: see `take`; of all tokens of a pass, and of the tokens with an output
        self._places_3T, self._output_places_3T = (np.zeros((3, PASS_TOKENS), np.int32) for _ in range(2))
        self._place_addresses, self._output_place_addresses = (
            tuple(row_T.ctypes.data for row_T in rows_3T) for rows_3T in (self._places_3T, self._output_places_3T)
        )
        self._expert_T = np.zeros(PASS_TOKENS, np.int32)
        self._expert_address = self._expert_T.ctypes.data
        self._tokens = 0
        width = model.hidden // model.heads
        shape_LnSd = lanes, model.heads, model.seq_length, width
        self._layer_caches = [(self._room.zeros(shape_LnSd), self._room.zeros(shape_LnSd)) for _ in range(model.layers)]
        self.cache_bytes = sum(keys_LnSd.nbytes + values_LnSd.nbytes for keys_LnSd, values_LnSd in self._layer_caches)
        self._norms = {"norm": (NormRows(self._x_TH, *self._norm_weights("norm"), self._y_TH), self._y_TH)}
        for i in range(model.layers):
            self._norms |= self._layer_norms(i, e_TH)
        layers = Bar(range(model.layers), desc="weights", unit="layer", leave=False)
        self._attentions = [self._attention_operators(i) for i in layers]
        self._ffns: list[FFN] = []
        for i in range(model.dense_layers):
            residual_TH, normed_TH = self._buffers(i)
            self._ffns.append(FFN([self._weights.ffn(i)], model.activation, normed_TH, residual_TH))
        self._routed = [self._routed_ffns(i, config) for i in range(model.rre_layers)]
        slots = (slice(slot * model.slot_rows, (slot + 1) * model.slot_rows) for slot in range(config.slots))
        self._heads = [TiedHead(self._mixed_TH, self._words.rows(slot)) for slot in slots]
        self.weight_bytes = self._weights.weight_bytes

    def take(self, lane_T: np.ndarray, at_T: np.ndarray, first_T: np.ndarray) -> None:
        """Set for each token of the next pass its lane, its index in the lane, and the index of its document's first token."""
        self._tokens = len(lane_T)
        self._places_3T[:, : self._tokens] = lane_T, at_T, first_T

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the KV cache of the first `tokens` tokens from lane `source` to lane `target`."""
        for keys_LnSd, values_LnSd in self._layer_caches:
            keys_LnSd[target, :, :tokens] = keys_LnSd[source, :, :tokens]
            values_LnSd[target, :, :tokens] = values_LnSd[source, :, :tokens]

    def logits(self, hidden_TH: np.ndarray, wanted_W: np.ndarray, slot: int) -> np.ndarray:
        """Return the logits [W, R] over the rows of a slot (share of the word table), for the W tokens of the pass with the numbers
        `wanted_W`."""
        np.take(hidden_TH, wanted_W, axis=0, out=self._mixed_TH[: len(wanted_W)])  # the input of all heads
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
        """Add causal attention over the KV cache to `x_TH`, and return `x_TH`. All tokens of the pass enter the cache. With
        `outputs_A` the pass goes on with these tokens only, whose hidden states move to the front."""
        operators, tokens, query_places = self._attentions[layer], self._tokens, self._place_addresses
        if outputs_A is None:
            operators.project_all(tokens)
        else:
            operators.project_keys_values(tokens)
            self._tokens, query_places = len(outputs_A), self._output_place_addresses
            self._output_places_3T[:, : self._tokens] = self._places_3T[:, outputs_A]
            for states_TH in (x_TH, query_TH):
                states_TH[: self._tokens] = states_TH[outputs_A]
            operators.project_queries(self._tokens)
        lanes, at, _ = self._place_addresses
        operators.attend(tokens, lanes, at, self._tokens, *query_places)
        operators.project_output(self._tokens)
        return x_TH

    def ffn(self, layer: int, x_TH: np.ndarray, normed_TH: np.ndarray) -> np.ndarray:
        self._ffns[layer](self._tokens)
        return x_TH

    def routed_ffn(self, layer: int, x_TH: np.ndarray, normed_TH: np.ndarray, experts_sT: np.ndarray) -> np.ndarray:
        """Add the FFN of each token's expert in each segment to `x_TH`, and return `x_TH`. layer: index among the RRE layers."""
        for ffn, expert_T in zip(self._routed[layer], experts_sT, strict=True):
            self._expert_T[: self._tokens] = expert_T
            ffn(self._tokens, self._expert_address)
        return x_TH

    def _buffers(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the buffers (residual, normed) of a layer. The norm before the query layer has swapped them."""
        return (self._y_TH, self._x_TH) if layer == self._model.layers - 1 else (self._x_TH, self._y_TH)

    def _layer_norms(self, layer: int, e_TH: np.ndarray | None) -> dict[str, tuple[NormRows, np.ndarray]]:
        """Return (operator, output buffer) of the two norms of a layer, by the names of their cells in the network. The first norm
        adds the scaled vectors `e_TH` to the residual before it reads this."""
        residual_TH, normed_TH = self._buffers(layer)
        scaled_e = None if e_TH is None else (self._weights.vector(f"layers.{layer}.row_scale"), e_TH)
        first, second = f"layers.{layer}.attention_norm", f"layers.{layer}.ffn_norm"
        return {
            first: (NormRows(residual_TH, *self._norm_weights(first), normed_TH, scaled_e), normed_TH),
            second: (NormRows(residual_TH, *self._norm_weights(second), normed_TH), normed_TH),
        }

    def _attention_operators(self, layer: int) -> _AttentionOperators:
        """Return the attention operators of a layer, which read and write the buffers of a pass. Queries of the last layer, the
        query layer, come from the result of `queries`; queries of other layers come from the normed hidden states."""
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
            attend=LaneAttention(self._q_TH, self._k_TH, self._v_TH, self._mixed_TH, *self._layer_caches[layer]),
            project_output=Projections([output]),
        )

    def _projection(self, layer: int, name: str, x_TH: np.ndarray, y_TH: np.ndarray, adds: bool = False) -> Projection:
        """Return a linear layer of a layer's attention, with its weights. adds: True to add the result to `y_TH`."""
        cell = f"layers.{layer}.attention.{name}"
        return Projection(
            x_TH, self._weights.matrix(f"{cell}.weight"), self._weights.vector(f"{cell}.bias"), y_TH, adds
        )

    def _routed_ffns(self, layer: int, config: Config) -> list[FFN]:
        """Return the FFN of each segment of an RRE layer, which adds to the residual. layer: index among the RRE layers."""
        residual_TH, normed_TH = self._buffers(self._model.dense_layers + layer)
        ffns = []
        segments = self._model.segments_of(layer)
        for n in segments:
            numbers = range(config.stored_experts(self._model.routed[n]))
            experts = Bar(numbers, desc=f"experts of RRE layer {layer}", unit="expert", leave=False)
            has_bias = n == segments.start
            weights = [self._weights.expert(n, expert, has_bias) for expert in experts]
            ffns.append(FFN(weights, self._model.activation, normed_TH, residual_TH))
        return ffns

    def _norm_weights(self, cell: str) -> tuple[np.ndarray, np.ndarray]:
        """Return gain and bias of the LayerNorm with this name in the network."""
        return self._weights.vector(f"{cell}.gain"), self._weights.vector(f"{cell}.bias")
