"""Inference graph for export: from token ids and domains to logits, with all experts, the routing tables and a KV cache inside.

One graph with dynamic shapes serves prefill and decode. Two graphs would be two MindIR files with all weights in each, on the disk
and in memory, because MindSpore gives each loaded file its own parameters.

Shape suffixes: B texts of a call, C new tokens of the longest text, T = B·C, W wanted tokens, H hidden, R rows of a slot,
V vocabulary, A blocks of the routing plan.
"""

from __future__ import annotations

import inspect
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import functional as F

from ascend_ops.few_rows import StoredPrecision
from pangu_sigma.config import Config
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.graph.block_plan import block_plan
from pangu_sigma.generate.graph.constants import fixed_parameter, numbered
from pangu_sigma.generate.graph.kv_cache import CachedAttention, Lanes
from pangu_sigma.generate.graph.rows import GraphRows
from pangu_sigma.generate.graph.weights_at_rest import KeptExperts, keep
from pangu_sigma.generate.weights import Weights
from pangu_sigma.model.dense_ffn import MatMulFFN
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.rre.experts import padded_experts
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.text.tokenizer import Tokenizer


class CachedGraph(nn.Cell):
    """Inference graph for export: returns the logits of the next token, and the most likely token."""

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        table: RoutingTable,
        weights: Weights,
        at_rest: StoredPrecision = "float32",
    ):
        """Build the network of `config`, whose KV cache has one lane. at_rest: precision in which the graph stores matrices."""
        super().__init__()
        model = config.model.model_copy(update={"dropout": 0.0})  # its operator is this project's, and needs a compiler
        self.network = PanGuSigma(
            model, config.slots, routed=padded_experts, dense=MatMulFFN, attention=CachedAttention, head=_WantedHead
        )
        self.lanes = Lanes(model, tokenizer.eot)
        self.plan = block_plan(table) if model.rre_layers else None
        keep(self.network, weights, at_rest)
        self.experts = KeptExperts(config, weights, at_rest)
        self.rows = GraphRows(config, table, weights) if model.rows else None
        self.words = _Words(config, tokenizer)
        self.pick, self.pick_each = ops.Gather(), ops.GatherD()

    def construct(self, ids_BC, lengths_B, start_B, lane_B, domain_B, wanted_W):
        """Read new tokens of B texts. Return the logits of the next token, float32 [W, R], and the likeliest token, int32 [W].

        ids: new tokens, padded to C. lengths: number of new tokens of a text, 1 … C. start: number of tokens in the text's lane
        (part of the KV cache) before the call; 0 begins a new text. lane, domain: their numbers; each text has a lane of its own.
        wanted: indices, among the B·C new tokens, of the W tokens to return the next one for. All inputs are int32.
        Logits are over the rows of the text's slot (share of the word table), -inf for rows without a token. They are NaN for a
        text with a new id that does not exist or has no row in the slot."""
        batch, width = F.shape(ids_BC)
        # Padding repeats a text's last token and its index in the cache, which changes nothing.
        number_BC = F.minimum(F.reshape(numbered(width), (1, -1)), F.reshape(lengths_B - 1, (-1, 1)))
        ids_BC = self.pick_each(ids_BC, 1, number_BC)
        index_BC = F.reshape(start_B, (-1, 1)) + number_BC
        positions_BC, cache = self.lanes(ids_BC, index_BC, start_B, lane_B)
        positions_T = F.reshape(positions_BC, (-1,))
        domains_T = F.reshape(F.reshape(domain_B, (-1, 1)) + ids_BC * 0, (-1,))
        ids_T, slots_T, rows_T, faults_T = self.words.rows(F.reshape(ids_BC, (-1,)), domains_T)
        order = inverse_NT = None
        experts: tuple = ()
        if self.plan is not None:
            active_NA, order, inverse_NT = self.plan(ids_T, domains_T, positions_T, batch)
            experts = self.experts(active_NA)
        e_TH: tuple = ()
        if self.rows is not None:
            e_TH = self.rows(ids_T, domains_T, positions_T, F.reshape(lane_B, (-1, 1)), index_BC)
        # Read once: MindSpore copies a parameter that is read again after another one was written.
        table = F.reshape(self.network.embedding, F.shape(self.network.embedding))
        x_TH = self.network.embed(table, self.network.positions, rows_T, positions_T)
        # None: no draws of dropout, and no offsets of experts, which the padded layout does not need
        hidden_TH = self.network.through_layers(x_TH, positions_T, cache, None, order, inverse_NT, None, e_TH, experts)
        slots_W = self.pick(slots_T, wanted_W, 0)
        logits_W1R = self.network.head(table, self.pick(hidden_TH, wanted_W, 0), slots_W)
        faults_B = F.reshape(F.reduce_sum(F.reshape(faults_T, (batch, -1)), 1), (-1,))
        faults_W = self.pick(faults_B, wanted_W // width, 0)  # of the text
        return self.words.likely(F.cast(F.squeeze(logits_W1R, 1), ms.float32), slots_W, faults_W)


def cached_graph(model: StoredModel, at_rest: StoredPrecision = "float32") -> CachedGraph:
    """Build the inference graph of a stored model, with its weights, on the current device. at_rest: dtype of stored matrices."""
    return CachedGraph(model.config, model.tokenizer, model.table, model, at_rest)


class _Words(nn.Cell):
    """Mapping between token ids and rows of the word table, in which the slots (tables of domains) follow each other."""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        """Flatten the tokenizer's tables of all slots; a row of -1 stands for an id that the slot does not have."""
        super().__init__()
        first_rows = np.arange(config.slots)[:, None] * config.model.slot_rows
        rows = np.where(tokenizer.row_of < 0, -1, tokenizer.row_of + first_rows)
        self.vocabulary, self.slot_rows = rows.shape[1], config.model.slot_rows
        self.row_of = fixed_parameter("row_of", rows.reshape(-1))
        self.id_of = fixed_parameter("id_of", tokenizer.slot_rows.reshape(-1))
        self.unused = fixed_parameter("unused", np.where(tokenizer.slot_rows < 0, -np.inf, 0), np.float32)
        self.slot_of = fixed_parameter("slot_of", np.array([domain.slot for domain in domains_of(config)]))
        self.fault = Tensor(np.array([0, np.nan], np.float32))
        self.pick, self.best = ops.Gather(), ops.Argmax(output_type=ms.int32)

    def rows(self, ids_T, domains_T):
        """Return for each token its id, slot and row of the word table, and a fault: 1 if the id does not exist or has no row in
        the slot, else 0. Ids and rows at fault are replaced by valid ones, because a graph cannot raise an error."""
        slots_T = self.pick(self.slot_of, domains_T, 0)
        valid_ids_T = F.clamp(ids_T, 0, self.vocabulary - 1)
        rows_T = self.pick(self.row_of, slots_T * self.vocabulary + valid_ids_T, 0)
        faults_T = F.logical_or(F.less(rows_T, 0), F.not_equal(valid_ids_T, ids_T))
        return valid_ids_T, slots_T, F.maximum(rows_T, 0), F.cast(faults_T, ms.float32)

    def likely(self, logits_WR, slots_W, faults_W):
        """Return the logits [W, R], -inf for rows without a token and NaN where faults_W, a number of faults, is not 0; and the
        ids of the largest ones, [W]."""
        fault_W = self.pick(self.fault, F.cast(F.minimum(faults_W, 1.0), ms.int32), 0)
        logits_WR = logits_WR + self.pick(self.unused, slots_W, 0) + F.expand_dims(fault_W, 1)
        return logits_WR, self.pick(self.id_of, slots_W * self.slot_rows + self.best(logits_WR), 0)


class _WantedHead(nn.Cell):
    """Output head for single tokens of different slots: construct(words, hidden_WH, slots_W) -> logits [W, 1, R].

    It computes logits of all slots and picks one, so it does not copy the embedding table of a slot for each token.
    """

    def __init__(self, slots: int, dtype: ms.Type):
        super().__init__()
        self.matmul, self.pick = ops.MatMul(transpose_b=True), ops.Gather()
        self.slots, self.dtype = slots, dtype

    def construct(self, words, hidden_WH, slots_W):
        logits = self.matmul(hidden_WH, F.cast(words, self.dtype))
        logits = F.reshape(logits, (-1, F.shape(words)[0] // self.slots))  # a row for each slot of each token
        return F.expand_dims(self.pick(logits, numbered(F.shape(slots_W)[0]) * self.slots + slots_W, 0), 1)


def inputs_and_outputs(config: Config) -> dict[str, Any]:
    """Return the signature of the exported graph as plain values: name, dtype and axes of its inputs and outputs, and the size of
    axis R, the rows of a slot. All other axes are dynamic."""
    arguments = list(inspect.signature(CachedGraph.construct).parameters)[1:]  # without self: ids_BC, lengths_B, …
    names_and_axes = [argument.rsplit("_", 1) for argument in arguments]
    inputs = [{"name": name, "axes": axes, "dtype": "int32"} for name, axes in names_and_axes]
    outputs = [
        {"name": "logits", "axes": "WR", "dtype": "float32"},
        {"name": "token", "axes": "W", "dtype": "int32"},
    ]
    return {"inputs": inputs, "outputs": outputs, "fixed": {"R": config.model.slot_rows}}


def open_inputs() -> tuple[Tensor, ...]:
    """Return placeholder inputs of `CachedGraph` with dynamic shapes, for `Cell.set_inputs` and export."""
    return tuple(Tensor(shape=[None] * axes, dtype=ms.int32) for axes in (2, 1, 1, 1, 1, 1))
