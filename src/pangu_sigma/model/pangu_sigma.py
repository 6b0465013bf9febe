"""The whole network of PanGu-Σ, and its loss.

    rows of the domain's embedding slot + positions
      → L dense layers        LayerNorm, attention, LayerNorm, FFN            all domains share them
      → RRE layers            the same attention, but the FFN is one expert   chosen by domain and token id
        the last layer is PanGu-α's query layer: its query is a table of positions, not the hidden state
      → logits over the domain's own embedding slot (tied)

Without RRE layers, or with one domain of one expert, this is PanGu-α. Where PanGu-α's releases differ, we follow the original
code: the final LayerNorm comes before the query layer, and there is none after it.

Shape suffixes: B batch, S sequence, T tokens = B·S, H hidden, F ffn, n heads, d = H/n, M blocks of a batch (one domain each),
R rows of an embedding slot, A active experts, N segments. Weights of experts are arguments, not parameters: the network is a pure
function of the dense parameters and the active experts, wherever those come from (our choice); and, if it drops values, of `draws`,
seed and numbers of the samples, from which every mask follows.

Operators that need a strategy under auto-parallel are attributes of their cells, so that `npu/sharding.py` finds them; casts and
reshapes follow their neighbours. On several ranks M counts the blocks of all ranks: ranks times blocks of one rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import nn, ops
from mindspore.ops import functional as F

from ascend_ops.dropout import CounterDropout
from pangu_sigma.model.arrays import FIRST_ROW_SCALE, expert_shapes, ffn_shapes
from pangu_sigma.model.declare import Constant, Normal, TruncatedNormal, Zero, make_parameter
from pangu_sigma.model.dense_ffn import OneExpertFFN
from pangu_sigma.model.rowwise import LayerNorm, softmax
from pangu_sigma.rre.experts import Experts, grouped_experts
from pangu_sigma.sections import Activation, ModelConfig, Segment

FFN_TENSORS = tuple(ffn_shapes(1, 1))
"""Names of the tensors of an FFN; for the active experts of a layer their shapes are [A, F, H], [A, F], [A, F, H] and [A, H]."""

MASKED = -10_000.0
"""Number added to the attention scores of masked positions (PanGu-α's value; float16 can represent it)."""


class Linear(nn.Cell):
    """Linear layer: x [T, in] · w [in, out] + b [out]."""

    def __init__(self, inputs: int, outputs: int, std: float, dtype: ms.Type):
        super().__init__()
        self.weight = make_parameter("weight", (inputs, outputs), Normal(std), decay=True)
        self.bias = make_parameter("bias", (outputs,), Zero(), decay=False)
        self.matmul = ops.MatMul()
        self.add = ops.BiasAdd()
        self.dtype = dtype

    def construct(self, x):
        return self.add(
            self.matmul(F.cast(x, self.dtype), F.cast(self.weight, self.dtype)), F.cast(self.bias, self.dtype)
        )


class Attention(nn.Cell):
    """Causal multi-head attention, shared by all domains."""

    def __init__(self, config: ModelConfig, dtype: ms.Type, layer: int):
        super().__init__()
        hidden, std = config.hidden, config.init_std
        self.query = Linear(hidden, hidden, std, dtype)
        self.key = Linear(hidden, hidden, std, dtype)
        self.value = Linear(hidden, hidden, std, dtype)
        self.output = Linear(hidden, hidden, std / math.sqrt(2 * config.layers), dtype)
        self.heads = config.heads
        self.scale = 1 / math.sqrt(hidden // config.heads)
        self.split_heads, self.join_heads = ops.Transpose(), ops.Transpose()
        self.multiply = ops.Mul()
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mask = ops.Add()
        self.softmax = softmax()
        self.weigh = ops.BatchMatMul()
        self.drop_weights = Dropout(config.dropout, dropout_site(layer, 0))
        self.drop_output = Dropout(config.dropout, dropout_site(layer, 1))
        self.dtype = dtype

    def construct(self, query_TH, x_TH, mask_B1SS, draws_B4):
        """Return the attention output [T, H]. Queries are made of query_TH, keys and values of x_TH. mask: added to the scores.
        draws: of `CounterDropout`."""
        batch, _, length, _ = F.shape(mask_B1SS)
        q = self._split(self.query(query_TH), batch, length)
        k = self._split(self.key(x_TH), batch, length)
        v = self._split(self.value(x_TH), batch, length)
        return self._mixed(q, k, v, mask_B1SS, draws_B4, F.shape(x_TH))

    def _mixed(self, q, k, v, mask_B1SS, draws_B4, shape_TH):
        """Return the attention output [T, H], shape_TH, for queries [B, n, S, d]; keys and values may be of other positions."""
        scores_BnSS = self.mask(F.cast(self.scores(self.multiply(q, self.scale), k), ms.float32), mask_B1SS)
        weights_BnSS = self.drop_weights(F.cast(self.softmax(scores_BnSS), self.dtype), draws_B4)
        mixed_BSnd = self.join_heads(self.weigh(weights_BnSS, v), (0, 2, 1, 3))
        return self.drop_output(self.output(F.reshape(mixed_BSnd, shape_TH)), draws_B4)

    def _split(self, x_TH, batch, length):
        return self.split_heads(F.reshape(x_TH, (batch, length, self.heads, -1)), (0, 2, 1, 3))


class DenseFFN(nn.Cell):
    """FFN of a dense layer with its weights; all tokens share it. construct returns residual_TH + FFN(x_TH)."""

    def __init__(self, config: ModelConfig, ffn: nn.Cell, layer: int):
        """ffn: cell that computes the FFN from weights that are its arguments. layer: number of the layer."""
        super().__init__()
        # without an axis for experts, which would be 1: optimizer parallelism divides the first axis of a parameter
        for name, shape, init, decay in ffn_tensors(config):
            setattr(self, name, make_parameter(name, shape, init, decay=decay))
        self.ffn = ffn
        self.add = ops.Add()
        self.drop = Dropout(config.dropout, dropout_site(layer, 2))

    def construct(self, residual_TH, x_TH, draws_B4):
        return self.add(residual_TH, self.drop(self.ffn(x_TH, self.w1, self.b1, self.w2, self.b2), draws_B4))


class ExpertFFN(nn.Cell):
    """A segment of an RRE layer, which in the paper is the layer's whole FFN."""

    def __init__(self, cells: Experts):
        super().__init__()
        self.dispatch, self.experts, self.combine = cells

    def construct(self, sum_TH, x_TH, order, inverse_T, offsets_A1, w1_AFH, b1_AF, w2_AFH, b2_AH=None):
        """Send each row of x_TH to its token's expert, and return sum_TH + the result, unweighted (there is no gate). order,
        inverse, offsets: the routing plan, as `Experts` takes it. w1 … b2: weights of the active experts; only the first segment of
        a layer has b2, the output bias of the layer."""
        rows = self.dispatch(x_TH, order, inverse_T)
        rows = self.experts(rows, w1_AFH, b1_AF, w2_AFH, b2_AH, offsets_A1)
        return self.combine(rows, inverse_T, order, sum_TH)


class RoutedFFN(nn.Cell):
    """FFN of an RRE layer: the sum of its segments."""

    def __init__(self, config: ModelConfig, segments: list[Experts], layer: int):
        """segments: the cells of each segment. layer: number of the layer."""
        super().__init__()
        self.segments = nn.CellList([ExpertFFN(cells) for cells in segments])
        self.drop = Dropout(config.dropout, dropout_site(layer, 2))
        self.drops = config.dropout > 0

    def construct(self, residual_TH, x_TH, draws_B4, *segments):
        """Return residual_TH + the FFN of x_TH. segments: for each segment the arguments of `ExpertFFN` after x_TH."""
        drops = self.drops and self.training
        # dropout is of the FFN's output alone, in the order of tokens: then the residual is added last instead of first
        sum_TH = F.zeros_like(residual_TH) if drops else residual_TH
        for s in range(len(self.segments)):
            sum_TH = self.segments[s](sum_TH, x_TH, *segments[s])
        if drops:  # on the CPU only, so this addition needs no strategy of auto-parallel
            return residual_TH + self.drop(sum_TH, draws_B4)
        return sum_TH


class AddRows(nn.Cell):
    """Sum of hidden states and scaled rows: construct(x_TH, e_TH, scale) -> x + scale · e. It is a cell, because a pipeline stage
    is a list of cells: operators of `Layer` itself run on the stage of their inputs, which may be the stage before."""

    def __init__(self, dtype: ms.Type):
        super().__init__()
        self.multiply, self.add, self.dtype = ops.Mul(), ops.Add(), dtype

    def construct(self, x_TH, e_TH, scale):
        return self.add(x_TH, self.multiply(e_TH, F.cast(scale, self.dtype)))


class Layer(nn.Cell):
    """Transformer layer: x + row_scale · e, if the model has rows, then x + attention(LN(x)), then x + FFN(LN(x))."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: ms.Type,
        ffn: nn.Cell,
        layer: int,
        attention: Callable[[ModelConfig, ms.Type, int], nn.Cell],
    ):
        super().__init__()
        self.attention_norm = LayerNorm(config.hidden)
        self.attention = attention(config, dtype, layer)
        self.add = ops.Add()
        self.ffn_norm = LayerNorm(config.hidden)
        self.ffn = ffn
        self.dtype = dtype
        self.add_rows = AddRows(dtype) if config.rows else None
        if config.rows:
            self.row_scale = make_parameter("row_scale", (1,), Constant(FIRST_ROW_SCALE), decay=False)

    def construct(self, x_TH, e_TH, query_TH, mask_B1SS, draws_B4, *segments):
        """Return the layer's output [T, H]. e_TH: the rows (`model.rows`) of each token, or (). query_TH: rows of the position
        table in the query layer; None in other layers, whose queries are made of the normed x_TH.

        mask, draws: as `AttentionMask` returns and `CounterDropout` takes. segments: as in `RoutedFFN`; none in a dense layer.
        """
        if self.add_rows is not None:
            x_TH = self.add_rows(x_TH, e_TH, self.row_scale)
        normed_TH = F.cast(self.attention_norm(x_TH), self.dtype)
        query_input_TH = normed_TH if query_TH is None else query_TH
        x_TH = self.add(x_TH, self.attention(query_input_TH, normed_TH, mask_B1SS, draws_B4))
        return self.ffn(x_TH, F.cast(self.ffn_norm(x_TH), self.dtype), draws_B4, *segments)


class Embedding(nn.Cell):
    """Sum of token and position embedding: construct(words, positions_SH, rows_T, positions_T) -> x_TH
    words, positions_SH: the two tables. rows_T, positions_T: row of each token in them."""

    def __init__(self):
        super().__init__()
        self.lookup, self.lookup_positions = ops.Gather(), ops.Gather()
        self.add = ops.Add()

    def construct(self, words, positions_SH, rows_T, positions_T):
        return self.add(self.lookup(words, rows_T, 0), self.lookup_positions(positions_SH, positions_T, 0))


class QueryEmbedding(nn.Cell):
    """Queries of the query layer, looked up by position: construct(positions_SH: the table, positions_T) -> query_TH"""

    def __init__(self):
        super().__init__()
        self.lookup = ops.Gather()

    def construct(self, positions_SH, positions_T):
        return self.lookup(positions_SH, positions_T, 0)


class Head(nn.Cell):
    """Output head, tied to the word table."""

    def __init__(self, slots: int, dtype: ms.Type):
        super().__init__()
        self.pick_slots = ops.Gather()
        self.matmul = ops.BatchMatMul(transpose_b=True)
        self.slots = slots
        self.dtype = dtype

    def construct(self, words, hidden_TH, slots_M):
        """Return the logits [M, T/M, R] of each block over the R rows of its slot. words: word table of all slots, [slots·R, H].
        slots_M: number of each block's slot."""
        hidden = F.shape(hidden_TH)[-1]
        table = F.reshape(F.cast(words, self.dtype), (self.slots, -1, hidden))
        table_MRH = self.pick_slots(table, slots_M, 0)
        return self.matmul(F.reshape(hidden_TH, (F.shape(slots_M)[0], -1, hidden)), table_MRH)


class PanGuSigma(nn.Cell):
    """The PanGu-Σ network: hidden states of a batch, and logits tied to the word table."""

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        dtype: ms.Type = ms.float32,
        routed: Callable[[Activation, Segment], Experts] = grouped_experts,
        dense: Callable[[Activation], nn.Cell] = OneExpertFFN,
        attention: Callable[[ModelConfig, ms.Type, int], nn.Cell] = Attention,
        head: Callable[[int, ms.Type], nn.Cell] = Head,
    ):
        """slots: number of embedding slots. routed, dense: functions that make the FFN cells of a segment of an RRE layer from an
        activation and the segment's kind, and of a dense layer from an activation. attention, head: functions that make the
        attention of a layer and the output head."""
        super().__init__()
        tables = TruncatedNormal(config.init_std)
        self.embedding = make_parameter(
            "embedding", (slots * config.slot_rows, config.hidden), Normal(config.init_std), decay=True
        )
        self.positions = make_parameter("positions", (config.seq_length, config.hidden), tables, decay=True)
        self.query_positions = make_parameter("query_positions", (config.seq_length, config.hidden), tables, decay=True)
        self.embed = Embedding()
        self.drop = Dropout(config.dropout, EMBEDDING_SITE) if config.dropout else None
        ffns: list[nn.Cell] = [DenseFFN(config, dense(config.activation), i) for i in range(config.dense_layers)]
        ffns += [
            RoutedFFN(config, [routed(config.activation, kind) for kind in config.segments], i)
            for i in range(config.dense_layers, config.layers)
        ]
        self.layers = nn.CellList([Layer(config, dtype, ffn, i, attention) for i, ffn in enumerate(ffns)])
        self.norm = LayerNorm(config.hidden)
        self.ask = QueryEmbedding()
        self.head = head(slots, dtype)
        self.hidden_from = AttentionMask()
        rre = [tuple(config.segments_of(layer)) for layer in range(config.rre_layers)]
        self.segments = (*[()] * config.dense_layers, *rre)  # numbers of each layer's segments
        self.last, self.has_rows = config.layers - 1, bool(config.rows)
        self.dtype = dtype

    def construct(self, rows_BS, positions_BS, documents_BS, draws_B4, order, inverse_T, offsets_A1, e_TH, experts):
        """Return the hidden states [T, H] after the query layer.

        rows: row of each token in the word table of all slots [slots·R, H]. positions: restart at every document. documents:
        number of each token's document; tokens attend within their document. draws: as in `CounterDropout`, or None. order,
        inverse, offsets: routing plans of the N segments, bottom layer first; offsets may be None, see `Experts`. e: rows of each
        token (`model.rows`) side by side, or (); the query layer adds them behind the last LayerNorm. experts: for each
        segment a tuple of FFN_TENSORS of its active experts, without b2 if it is not the first of its layer.
        """
        positions_T = F.reshape(positions_BS, (-1,))
        x_TH = self.embed(self.embedding, self.positions, F.reshape(rows_BS, (-1,)), positions_T)
        # Dropout is outside of the embedding's cell: MindSpore loses the pipeline stage of a cell with an unused argument.
        x_TH = x_TH if self.drop is None else self.drop(x_TH, draws_B4)
        x_TH = F.cast(x_TH, self.dtype)
        mask = self.hidden_from(documents_BS)
        return self.through_layers(x_TH, positions_T, mask, draws_B4, order, inverse_T, offsets_A1, e_TH, experts)

    def through_layers(self, x_TH, positions_T, mask, draws_B4, order, inverse_T, offsets_A1, e_TH, experts):
        """Return the hidden states [T, H] after all layers. x: embedded tokens. mask: of attention. Others: as in `construct`."""
        e_TH = F.cast(e_TH, self.dtype) if self.has_rows else e_TH
        for i in range(self.last + 1):
            query_TH = None
            if i == self.last:  # the query layer, with the final LayerNorm in front
                x_TH = F.cast(self.norm(x_TH), self.dtype)
                query_TH = F.cast(self.ask(self.query_positions, positions_T), self.dtype)
            segments: tuple = ()
            for n in self.segments[i]:
                segments += ((order[n], inverse_T[n], None if offsets_A1 is None else offsets_A1[n], *experts[n]),)
            x_TH = self.layers[i](x_TH, e_TH, query_TH, mask, draws_B4, *segments)
        return x_TH

    def logits(self, hidden_TH, slots_M):
        """Return the logits [M, T/M, R] of each block over the rows of its slot. slots_M: number of each block's slot."""
        return self.head(self.embedding, hidden_TH, slots_M)


class NextTokenLoss(nn.Cell):
    """Weighted cross-entropy of the next token over the rows of each block's slot, in float32."""

    def __init__(self, network: PanGuSigma, by_sequence: bool = False):
        """by_sequence: True for a sum per sequence, False for a sum per block."""
        super().__init__()
        self.network, self.by_sequence = network, by_sequence
        self.log_softmax = ops.LogSoftmax(-1)
        self.pick = ops.GatherD()
        self.weigh, self.negate = ops.Mul(), ops.Neg()
        self.sum_tokens = ops.ReduceSum()

    def construct(
        self,
        rows_BS,
        positions_BS,
        documents_BS,
        slots_M,
        labels_BS,
        weights_BS,
        draws_B4,
        order,
        inverse_T,
        offsets_A1,
        e_TH,
        experts,
    ):
        """Return the sum of weight · negative log-likelihood over the tokens of each block [M], or, `by_sequence`, sequence [B].

        slots: slot of each block. labels: next tokens, as rows of the block's slot. weights: the loss mask divided by its sum over
        the whole update, so that micro-batches add up. The other arguments are as in `PanGuSigma.construct`.
        """
        hidden_TH = self.network(
            rows_BS, positions_BS, documents_BS, draws_B4, order, inverse_T, offsets_A1, e_TH, experts
        )
        logits = ops.cast(self.network.logits(hidden_TH, slots_M), ms.float32)
        labels = ops.reshape(labels_BS, (logits.shape[0], -1, 1))
        picked = self.pick(self.log_softmax(logits), 2, labels)
        weighted = self.weigh(picked, ops.reshape(weights_BS, labels.shape))
        if self.by_sequence:
            weighted = ops.reshape(weighted, (rows_BS.shape[0], -1, 1))
        return self.negate(self.sum_tokens(weighted, (1, 2)))


EMBEDDING_SITE = 0
"""Site number, as of `dropout_site`, of the dropout of the embeddings."""


def dropout_site(layer: int, which: int) -> int:
    """Return the site number of a dropout of a layer. which: 0 attention probabilities, 1 attention output, 2 FFN output."""
    return 1 + 3 * layer + which


class Dropout(nn.Cell):
    """Dropout on the CPU, absent from the graph at rate 0 and outside training. construct(x, draws_B4) -> as x
    draws: as in `CounterDropout`. A mask is a function of seed, sample, site (`dropout_site`) and position in the sample, so
    resuming, ranks and micro-batches do not change it (our choice)."""

    def __init__(self, rate: float, site: int):
        super().__init__()
        self.drop: Any = CounterDropout(rate, site) if rate else None

    def construct(self, x, draws_B4):
        return x if self.drop is None or not self.training else self.drop(x, draws_B4)


class AttentionMask(nn.Cell):
    """Additive attention mask, causal and within documents."""

    def __init__(self):
        super().__init__()
        self.expand_queries, self.expand_keys, self.expand_heads = ops.ExpandDims(), ops.ExpandDims(), ops.ExpandDims()
        self.differ, self.either, self.multiply = ops.NotEqual(), ops.LogicalOr(), ops.Mul()

    def construct(self, documents_BS):
        """Return the mask, float32 [B, 1, S, S]: 0 where query i may see key j (same document, j ≤ i), MASKED elsewhere.
        documents: number of each token's document."""
        index_S = ops.arange(F.shape(documents_BS)[1])
        is_later_1SS = F.reshape(index_S, (1, 1, -1)) > F.reshape(index_S, (1, -1, 1))
        is_other_BSS = self.differ(self.expand_queries(documents_BS, 1), self.expand_keys(documents_BS, 2))
        is_masked_BSS = F.cast(self.either(is_other_BSS, is_later_1SS), ms.float32)
        return self.expand_heads(self.multiply(is_masked_BSS, MASKED), 1)


def ffn_tensors(
    config: ModelConfig, segment: int | None = None
) -> list[tuple[str, tuple[int, ...], ms.common.initializer.Initializer, bool]]:
    """Return name, shape, initialiser and weight decay (True or False) of each tensor of a dense layer's FFN, or of one expert.

    segment: number of the expert's segment in its layer; only segment 0 has b2. None: a dense layer.
    """
    down, zero = Normal(config.init_std / math.sqrt(2 * config.layers)), Zero()
    init = {"w1": (Normal(config.init_std), True), "b1": (zero, False), "w2": (down, True), "b2": (zero, False)}
    shapes = ffn_shapes(config.hidden, config.ffn) if segment is None else expert_shapes(config, segment)
    return [(name, shape, *init[name]) for name, shape in shapes.items()]
