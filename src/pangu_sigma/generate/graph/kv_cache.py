"""Attention with a KV cache, in standard operators.

The cache is in parameters of the graph, with a *lane* for each text. Keys and values of token s of a lane are at [lane, :, s].
Attention masks what a lane holds beyond its text, so a new text that starts at 0 needs no clearing of its lane.

Shape suffixes: L lanes, B texts of a call, each in a lane of its own, C new tokens of each, S positions of a lane
(model.seq_length), T = B·C, n heads, d = H/n.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import functional as F

from pangu_sigma.generate.graph.constants import fixed_parameter
from pangu_sigma.model.pangu_sigma import MASKED, Attention
from pangu_sigma.sections import ModelConfig


class CachedAttention(Attention):
    """Attention of an exported graph over its KV cache, in which it first stores the keys and values of the new tokens."""

    def __init__(self, config: ModelConfig, dtype: ms.Type, layer: int):
        """Make the cache with one lane: the README of an export says how to get more, by the names of these parameters."""
        super().__init__(config, dtype, layer)
        cache = np.zeros((1, config.heads, config.seq_length, config.hidden // config.heads))
        self.keys, self.values = (fixed_parameter(name, cache, np.float32) for name in ("keys", "values"))
        self.add_keys, self.add_values = ops.ScatterNdUpdate(), ops.ScatterNdUpdate()
        self.pick = ops.Gather()

    def construct(self, query_TH, x_TH, cache, draws_B4):
        """Return the result of attention, [T, H]. query_TH: rows that become queries. x_TH: rows that become keys and values.
        cache: the second result of `Lanes.construct`. draws_B4: None, because there is no dropout."""
        unseen_B1CS, lane_B, where = cache
        batch, _, length, _ = F.shape(unseen_B1CS)
        q = self._split(self.query(query_TH), batch, length)
        keys = self.add_keys(self.keys, where, self._heads(self.key(x_TH)))
        values = self.add_values(self.values, where, self._heads(self.value(x_TH)))
        k, v = self.pick(keys, lane_B, 0), self.pick(values, lane_B, 0)
        return self._mixed(q, k, v, unseen_B1CS, draws_B4, F.shape(x_TH))

    def _heads(self, x_TH):
        """Return the vectors of the heads of all tokens, float32 [T·n, d]."""
        return F.cast(F.reshape(x_TH, (-1, self.keys.shape[3])), ms.float32)


class Lanes(nn.Cell):
    """Cell of an exported graph that computes positions, attention mask and KV cache indices of the new tokens of a call.

    A document ends with <eot>: later tokens do not attend to it, and their positions start again at 0, as in data/batches.py.
    """

    def __init__(self, config: ModelConfig, eot: int):
        """eot: id of <eot>. The parameter `ended` holds, for each token of a lane, the number of <eot> before it."""
        super().__init__()
        self.ended = fixed_parameter("ended", np.zeros((1, config.seq_length + 1)))  # also for the token after the last
        self.eot, self.length, self.heads = eot, config.seq_length, config.heads
        self.number_S = Tensor(np.arange(config.seq_length, dtype=np.int32))
        self.head_n = Tensor(np.arange(config.heads, dtype=np.int32))
        self.write_counts, self.read_counts = ops.ScatterNdUpdate(), ops.GatherNd()
        self.pick, self.cumulative_sum, self.sum = ops.Gather(), ops.CumSum(), ops.ReduceSum()

    def construct(self, ids_BC, index_BC, start_B, lane_B):
        """Return positions_BC in the documents, and for `CachedAttention` a tuple (unseen_B1CS, lane_B, where).

        index: index in its lane of each of C new tokens of B texts. start: number of tokens in the lane before the call. unseen:
        mask to add to attention scores, 0 or `MASKED`. where: lane, head (of n) and index of each key and value, [T·n, 3]."""
        lane_BC = F.reshape(lane_B, (-1, 1)) + index_BC * 0
        ends_BC = F.cast(F.equal(ids_BC, self.eot), ms.int32)
        ended_B = self.read_counts(self.ended, F.stack((lane_B, start_B), 1))
        ended_BC = self.cumulative_sum(ends_BC, 1) + F.reshape(ended_B, (-1, 1))  # number of <eot> up to each token
        next_T2 = F.stack((F.reshape(lane_BC, (-1,)), F.reshape(index_BC + 1, (-1,))), 1)
        ended = self.write_counts(self.ended, next_T2, F.reshape(ended_BC, (-1,)))
        # Tokens with the same number of <eot> before them are one document.
        document_BS = self.pick(self.pick(ended, lane_B, 0), self.number_S, 1)
        number_11S = F.reshape(self.number_S, (1, 1, -1))
        same_BCS = F.equal(F.expand_dims(document_BS, 1), F.expand_dims(ended_BC - ends_BC, 2))
        visible_BCS = F.cast(F.logical_and(same_BCS, F.less_equal(number_11S, F.expand_dims(index_BC, 2))), ms.float32)
        positions_BC = F.cast(self.sum(visible_BCS, 2), ms.int32) - 1
        unseen_B1CS = F.expand_dims((1.0 - visible_BCS) * MASKED, 1)
        return positions_BC, (unseen_B1CS, lane_B, self._where(lane_BC, index_BC))

    def _where(self, lane_BC, index_BC):
        """Return (lane, head, index) of the keys and values of all heads of all tokens, [T·n, 3]."""
        lane_T1, index_T1 = F.reshape(lane_BC, (-1, 1)), F.reshape(index_BC, (-1, 1))
        head_Tn = F.reshape(self.head_n, (1, -1)) + index_T1 * 0
        indices = (lane_T1 + head_Tn * 0, head_Tn, index_T1 + head_Tn * 0)
        return F.stack([F.reshape(index_Tn, (-1,)) for index_Tn in indices], 1)
