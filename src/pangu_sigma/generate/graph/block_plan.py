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
from mindspore import Tensor, nn, ops
from mindspore.ops import functional as F

from pangu_sigma.generate.graph.constants import fixed_parameter, numbered
from pangu_sigma.rre.table import RoutingTable


class BlockPlan(nn.Cell):
    """Routing plan inside an exported graph: sorts T tokens by expert, into A blocks of b rows each."""

    def __init__(self, table: RoutingTable):
        """table: routing tables whose segments all have the same number of experts."""
        super().__init__()
        domains, self.vocabulary = table.spread_DV.shape
        self.layers, self.experts = table.layers, table.experts  # experts of one domain
        self.stored = domains * self.experts  # K, the experts of all domains
        first_of_domain_D1 = np.arange(domains, dtype=np.int32)[:, None] * self.experts
        self.first = fixed_parameter("first_expert", (table.first_NDV + first_of_domain_D1).reshape(self.layers, -1))
        # None: no token has several experts
        self.spread = None if (table.spread_DV <= 1).all() else fixed_parameter("spread", table.spread_DV.reshape(-1))
        self.number_K = Tensor(np.arange(self.stored, dtype=np.int32))
        self.layer_N = Tensor(np.arange(self.layers, dtype=np.int32))
        self.gather, self.cumulative_sum, self.gather_elements = ops.Gather(), ops.CumSum(), ops.GatherD()
        self.sum, self.scatter = ops.ReduceSum(), ops.TensorScatterUpdate()

    def construct(self, ids_T, domains_T, positions_T, texts):
        """Plan the blocks of T tokens. A block is b rows of one expert; a row is a token or padding. texts: number of texts.

        Return active_NA, the expert of each block; order_NAb, the token of each row; inverse_NT, the row of each token, counted
        over all blocks of its segment."""
        expert_NT = self._experts(ids_T, domains_T, positions_T)
        tokens = F.shape(ids_T)[0]
        # Upper bounds: MindSpore 2.9 would compute the exact numbers of dynamic sizes in Python at each call.
        most_experts = texts * self.experts  # that can be active, because a text has one domain
        rows = (tokens - 1) // most_experts + 1  # b
        blocks = (tokens + most_experts * (rows - 1)) // rows  # A
        is_of_NTK = F.cast(F.equal(F.expand_dims(expert_NT, 2), F.reshape(self.number_K, (1, 1, -1))), ms.int32)
        count_NTK = self.cumulative_sum(is_of_NTK, 1)
        blocks_NK = (self.sum(is_of_NTK, 1) + (rows - 1)) // rows
        end_NK = self.cumulative_sum(blocks_NK, 1)
        first_block_NT = self.gather_elements(end_NK - blocks_NK, 1, expert_NT)  # first block of the token's expert
        row_of_expert_NT = self.sum(is_of_NTK * count_NTK, 2) - 1
        inverse_NT = first_block_NT * rows + row_of_expert_NT
        # A block belongs to the first expert whose blocks end after it; blocks after the last expert's are padding.
        is_ended_NAK = F.less_equal(F.expand_dims(end_NK, 1), F.reshape(numbered(blocks), (1, -1, 1)))
        active_NA = F.minimum(self.sum(F.cast(is_ended_NAK, ms.int32), 2), self.stored - 1)
        return active_NA, self._order(inverse_NT, blocks, rows), inverse_NT

    def _experts(self, ids_T, domains_T, positions_T):
        """Return the expert of each token in each segment, int32 [N, T]. Experts are numbered over all domains of the segment, as
        by `RoutingTable.route`. A token that is spread has neighbouring experts in turn, by its position."""
        at_T = domains_T * self.vocabulary + ids_T
        expert_NT = self.gather(self.first, at_T, 1)
        if self.spread is None:
            return expert_NT
        first_of_domain_T = domains_T * self.experts
        shifted_NT = expert_NT - first_of_domain_T + F.floormod(positions_T, self.gather(self.spread, at_T, 0))
        return F.floormod(shifted_NT, self.experts) + first_of_domain_T

    def _order(self, inverse_NT, blocks, rows):
        """Return the token of each row, [N, A, b], given the row of each token. Padding has token 0; its result is not read."""
        order = F.zeros((self.layers, blocks * rows), ms.int32)
        layer_NT = F.reshape(self.layer_N, (-1, 1)) + inverse_NT * 0
        token_NT = numbered(F.shape(inverse_NT)[1]) + inverse_NT * 0
        indices = F.stack((F.reshape(layer_NT, (-1,)), F.reshape(inverse_NT, (-1,))), 1)
        order = self.scatter(order, indices, F.reshape(token_NT, (-1,)))
        return F.reshape(order, (self.layers, blocks, rows))


class PlansByKind(nn.Cell):
    """Routing plans of a table with own segments, where a domain has its experts, and common segments, where domains share all."""

    def __init__(self, table: RoutingTable):
        """Make a plan for the segments of each kind, because the kinds have different numbers of experts, and so of blocks."""
        super().__init__()
        common_N, spread_V = table.common_N, table.common_spread_V
        assert common_N is not None and spread_V is not None
        is_common = common_N > 0
        first_N1V = table.first_NDV[is_common, :1]  # the same for all domains
        self.own = BlockPlan(RoutingTable(table.first_NDV[~is_common], table.spread_DV, table.experts))
        self.common = BlockPlan(RoutingTable(first_N1V, spread_V[None], int(common_N.max())))
        self.is_common = tuple(is_common.tolist())
        # number of each segment within its kind
        self.number = tuple((np.where(is_common, is_common.cumsum(), (~is_common).cumsum()) - 1).tolist())

    def construct(self, ids_T, domains_T, positions_T, texts):
        """Return the results of `BlockPlan`, but each as a tuple with an array for each segment: their numbers of blocks differ."""
        own = self.own(ids_T, domains_T, positions_T, texts)
        common = self.common(ids_T, domains_T * 0, positions_T, 1)  # all texts share these experts
        active: tuple = ()
        order: tuple = ()
        inverse: tuple = ()
        for n in range(len(self.is_common)):
            plan = common if self.is_common[n] else own
            active += (plan[0][self.number[n]],)
            order += (plan[1][self.number[n]],)
            inverse += (plan[2][self.number[n]],)
        return active, order, inverse


def block_plan(table: RoutingTable) -> BlockPlan | PlansByKind:
    """Make the cell that plans the routing of an exported graph."""
    return BlockPlan(table) if table.common_N is None else PlansByKind(table)
