"""The network as it is deployed: token ids and a domain in, logits out, with a KV cache in the graph's parameters.

Shape suffixes: B texts of a call, C new tokens of the longest, T = B·C, W wanted tokens, S positions of a lane, N RRE layers,
K experts stored, R rows of a slot, V vocabulary, D domains.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.ops import functional as F

from pangu_sigma.config import Config
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.domains import domains_of
from pangu_sigma.generate.block_plan import BlockPlan, numbers
from pangu_sigma.generate.kv_cache import CachedAttention, Lanes
from pangu_sigma.model.dense_ffn import MatMulFFN
from pangu_sigma.model.pangu_sigma import FFN_TENSORS, PanGuSigma
from pangu_sigma.rre.experts import padded_experts
from pangu_sigma.rre.table import RoutingTable


class WantedHead(nn.Cell):
    """Logits of single tokens, each of its own slot. construct(words, hidden_WH, slots_W) -> [W, 1, R]"""

    def __init__(self, slots: int, dtype: ms.Type):
        super().__init__()
        self.matmul, self.pick = ops.MatMul(transpose_b=True), ops.Gather()
        self.slots, self.dtype = slots, dtype

    def construct(self, words, hidden_WH, slots_W):
        logits = self.matmul(hidden_WH, F.cast(words, self.dtype))
        logits = F.reshape(logits, (-1, F.shape(words)[0] // self.slots))
        number_W = numbers(F.shape(slots_W)[0])
        return F.expand_dims(self.pick(logits, number_W * self.slots + slots_W, 0), 1)


class CachedGraph(nn.Cell):
    """construct(ids_BC, lengths_B, start_B, lane_B, domain_B, wanted_W) -> float32 [W, R], int32 [W]"""

    def __init__(self, config: Config, tokenizer: Tokenizer, table: RoutingTable, expert_weights: list[np.ndarray]):
        super().__init__()
        model = config.model.model_copy(update={"dropout": 0.0})
        self.network = PanGuSigma(
            model, config.slots, routed=padded_experts, dense=MatMulFFN, attention=CachedAttention, head=WantedHead
        )
        self.lanes = Lanes(model, tokenizer.eot)
        self.plan = BlockPlan(table) if model.rre_layers else None
        names = [f"experts.{i // len(FFN_TENSORS)}.{i % len(FFN_TENSORS)}" for i in range(len(expert_weights))]
        self.experts = ParameterTuple(
            [Parameter(Tensor(w), name=n, requires_grad=False) for w, n in zip(expert_weights, names, strict=True)]
        )
        self.slot_rows = model.slot_rows
        rows = tokenizer.row_of + np.arange(config.slots)[:, None] * model.slot_rows
        rows = np.where(tokenizer.row_of < 0, -1, rows)
        self.vocabulary = rows.shape[1]
        self.row_of = Parameter(Tensor(rows.reshape(-1).astype(np.int32)), name="row_of", requires_grad=False)
        self.id_of = Parameter(Tensor(tokenizer.slot_rows.reshape(-1).astype(np.int32)), name="id_of", requires_grad=False)
        unused = np.where(tokenizer.slot_rows < 0, -np.inf, 0).astype(np.float32)
        self.unused = Parameter(Tensor(unused), name="unused", requires_grad=False)
        self.slot_of = Tensor(np.array([d.slot for d in domains_of(config)], np.int32))
        self.pick, self.pick_each = ops.Gather(), ops.GatherD()
        self.best = ops.Argmax(output_type=ms.int32)

    def construct(self, ids_BC, lengths_B, start_B, lane_B, domain_B, wanted_W):
        batch, most = F.shape(ids_BC)
        number_C = numbers(most)
        token_BC = F.minimum(F.reshape(number_C, (1, -1)), F.reshape(lengths_B - 1, (-1, 1)))
        ids_BC = self.pick_each(ids_BC, 1, token_BC)
        index_BC = F.reshape(start_B, (-1, 1)) + token_BC
        positions_BC, seen = self.lanes(ids_BC, index_BC, start_B, lane_B)
        domains_T = F.reshape(F.reshape(domain_B, (-1, 1)) + ids_BC * 0, (-1,))
        ids_T = F.reshape(ids_BC, (-1,))
        slots_T = self.pick(self.slot_of, domains_T, 0)
        rows_T = self.pick(self.row_of, slots_T * self.vocabulary + ids_T, 0)
        order = inverse_NT = None
        experts: tuple = ()
        if self.plan is not None:
            active_NA, order, inverse_NT = self.plan(ids_T, domains_T, F.reshape(positions_BC, (-1,)), batch)
            for i in range(len(self.experts)):
                weight = self.pick(self.experts[i], active_NA[i // len(FFN_TENSORS)], 0)
                experts += (F.expand_dims(weight, 1) if weight.ndim == 2 else weight,)
        # Read once: MindSpore copies a parameter that is read again after another one was written.
        words = F.reshape(self.network.embedding, F.shape(self.network.embedding))
        hidden_TH = self.network.hidden(words, rows_T, positions_BC, seen, None, order, inverse_NT, None, *experts)
        slots_W = self.pick(slots_T, wanted_W, 0)
        logits_W1R = self.network.head(words, self.pick(hidden_TH, wanted_W, 0), slots_W)
        logits_WR = F.cast(F.squeeze(logits_W1R, 1), ms.float32) + self.pick(self.unused, slots_W, 0)
        id_W = self.pick(self.id_of, slots_W * self.slot_rows + self.best(logits_WR), 0)
        return logits_WR, id_W
