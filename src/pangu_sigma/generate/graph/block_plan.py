"""Routing plan of a call, computed in the graph from token ids and domains.

Shape suffixes: T tokens, D domains, V vocabulary, N segments of the RRE layers, K experts stored in one, A blocks of b rows of one
expert.

The rows of each expert are split into blocks of b rows: dropless, with at most b - 1 rows of padding per expert. b is 1 when each
token can have an expert of its own (decoding), and grows with the tokens per expert of the call. The cells of the padded layout
(rre/experts.py) take the plan, with A blocks in place of A experts.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops import functional as F

from pangu_sigma.rre.table import RoutingTable


class BlockPlan(nn.Cell):
    """Routing plan inside an exported graph: sorts T tokens by expert, into A blocks. A block here is b rows for one expert, each
    a token or padding. construct(ids_T, domains_T, positions_T, texts) -> active_NA, order_NAb, inverse_NT
    texts: number of texts in the call. active: expert of each block. order: token of each row. inverse: row of each
    token, counted over all blocks."""

    def __init__(self, table: RoutingTable):
        super().__init__()
        domains, self.vocabulary = table.spread_DV.shape
        self.layers, self.experts = table.layers, table.experts  # experts of one domain
        self.stored = domains * self.experts  # K, experts of all domains
        first_of_domain_D1 = np.arange(domains, dtype=np.int32)[:, None] * self.experts
        self.first = fixed_parameter("first_expert", (table.first_NDV + first_of_domain_D1).reshape(self.layers, -1))
        # None: no token has several experts
        self.spread = None if (table.spread_DV <= 1).all() else fixed_parameter("spread", table.spread_DV.reshape(-1))
        self.number_K = Tensor(np.arange(self.stored, dtype=np.int32))
        self.layer_N = Tensor(np.arange(self.layers, dtype=np.int32))
        self.gather, self.cumulative_sum, self.gather_elements = ops.Gather(), ops.CumSum(), ops.GatherD()
        self.sum, self.scatter = ops.ReduceSum(), ops.TensorScatterUpdate()

    def construct(self, ids_T, domains_T, positions_T, texts):
        expert_NT = self._experts(ids_T, domains_T, positions_T)
        tokens = F.shape(ids_T)[0]
        # at most; no min and max of open sizes: MindSpore 2.9 computes them in Python at each call
        active = texts * self.experts
        rows = (tokens - 1) // active + 1
        blocks = (tokens + active * (rows - 1)) // rows
        is_of_NTK = F.cast(F.equal(F.expand_dims(expert_NT, 2), F.reshape(self.number_K, (1, 1, -1))), ms.int32)
        counted_NTK = self.cumulative_sum(is_of_NTK, 1)
        blocks_NK = (self.sum(is_of_NTK, 1) + (rows - 1)) // rows
        end_NK = self.cumulative_sum(blocks_NK, 1)
        before_NT = self.gather_elements(end_NK - blocks_NK, 1, expert_NT)  # blocks of the experts before the token's
        within_NT = self.sum(is_of_NTK * counted_NTK, 2) - 1
        inverse_NT = before_NT * rows + within_NT
        number_A = numbered(blocks)
        active_NA = self.sum(
            F.cast(F.less_equal(F.expand_dims(end_NK, 1), F.reshape(number_A, (1, -1, 1))), ms.int32), 2
        )
        order_NAb = self._order(inverse_NT, blocks, rows)
        return F.minimum(active_NA, self.stored - 1), order_NAb, inverse_NT

    def _experts(self, ids_T, domains_T, positions_T):
        """Return the expert of each token in each segment, numbered over the segment, as `RoutingTable.route`."""
        at_T = domains_T * self.vocabulary + ids_T
        expert_NT = self.gather(self.first, at_T, 1)
        if self.spread is None:
            return expert_NT
        first_of_domain_T = domains_T * self.experts
        shifted_NT = expert_NT - first_of_domain_T + F.floormod(positions_T, self.gather(self.spread, at_T, 0))
        return F.floormod(shifted_NT, self.experts) + first_of_domain_T

    def _order(self, inverse_NT, blocks, rows):
        """Return the token of each row; padding repeats token 0, and its result is not read."""
        none_NAb = F.zeros((self.layers, blocks * rows), ms.int32)
        layer_NT = F.reshape(self.layer_N, (-1, 1)) + inverse_NT * 0
        token_NT = numbered(F.shape(inverse_NT)[1]) + inverse_NT * 0
        where = F.stack((F.reshape(layer_NT, (-1,)), F.reshape(inverse_NT, (-1,))), 1)
        order = self.scatter(none_NAb, where, F.reshape(token_NT, (-1,)))
        return F.reshape(order, (self.layers, blocks, rows))


class PlansByKind(nn.Cell):
    """Routing plans of a table with own and common segments. construct: as `BlockPlan`, but each result is a tuple of one entry per
    segment, because the two kinds of segments have different numbers of experts, and so of blocks."""

    def __init__(self, table: RoutingTable):
        super().__init__()
        common_N, spread_V = table.common_N, table.common_spread_V
        assert common_N is not None and spread_V is not None
        first_N1V = table.first_NDV[common_N > 0, :1]  # the same for all domains
        self.own = BlockPlan(RoutingTable(table.first_NDV[common_N == 0], table.spread_DV, table.experts))
        self.common = BlockPlan(RoutingTable(first_N1V, spread_V[None], int(common_N.max())))
        is_common = common_N > 0
        self.is_common = tuple(is_common.tolist())
        # number of each segment within its kind
        self.number = tuple((np.where(is_common, is_common.cumsum(), (~is_common).cumsum()) - 1).tolist())

    def construct(self, ids_T, domains_T, positions_T, texts):
        own = self.own(ids_T, domains_T, positions_T, texts)
        common = self.common(ids_T, domains_T * 0, positions_T, 1)  # all texts share these experts
        active: tuple = ()
        order: tuple = ()
        inverse: tuple = ()
        for n in range(len(self.is_common)):
            of_kind = common if self.is_common[n] else own
            active += (of_kind[0][self.number[n]],)
            order += (of_kind[1][self.number[n]],)
            inverse += (of_kind[2][self.number[n]],)
        return active, order, inverse


def block_plan(table: RoutingTable) -> BlockPlan | PlansByKind:
    """Make the cell that plans the routing of an exported graph."""
    return BlockPlan(table) if table.common_N is None else PlansByKind(table)


def fixed_parameter(name: str, values: np.ndarray) -> Parameter:
    """Make an int32 parameter that is not trained, for a constant of an exported graph."""
    return Parameter(Tensor(values.astype(np.int32)), name=name, requires_grad=False)


def numbered(length):
    """Return the int32 tensor 0 … length - 1 in a graph, in place of `ops.arange`, which with dynamic shapes keeps the length of
    the first call (MindSpore 2.9)."""
    return ops.cumsum(F.ones((length,), ms.int32), 0) - 1
