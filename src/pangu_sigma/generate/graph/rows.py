"""Rows for pairs of tokens (`model.rows`) in an exported graph: keys from ids, and the rows that training met, found by their keys.

Shape suffixes: E entries of `model.rows`, V vocabulary, U rows that were met and one of zeros, B texts of a call, C new tokens of
each, T = B·C, H hidden.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.ops import functional as F

from pangu_sigma.config import Config
from pangu_sigma.generate.graph.block_plan import fixed_parameter
from pangu_sigma.generate.graph.kv_cache import of_lanes
from pangu_sigma.generate.weights import Weights
from pangu_sigma.rre.table import RoutingTable


class GraphRows(nn.Cell):
    """Rows of an exported graph, float32: construct(ids_T, domains_T, positions_T, lane_B1, index_BC) -> e_TH
    index: index of each token in its lane. A parameter holds the id before each token of a lane, also before the next one."""

    def __init__(self, config: Config, table: RoutingTable, weights: Weights):
        super().__init__()
        assert table.row_EV is not None and table.before_EV1 is not None
        entries, self.none = config.model.rows, table.row_EV.shape[1]
        self.before = of_lanes("before", (1, config.model.seq_length + 1), np.int32)
        self.row, self.row_before = (
            fixed_parameter("row", table.row_EV),
            fixed_parameter("row_before", table.before_EV1),
        )
        self.rows_E1 = Tensor(np.array([[entry.rows] for entry in entries], np.int32))
        self.of_domain = tuple(entry.rows if entry.kind == "own" else 0 for entry in entries)
        rows = [weights.rows(entry) for entry in range(len(entries))]
        self.unmet = tuple(len(keys) for keys, _ in rows)
        # The last row is zeros, for all rows that were not met; no token has its key.
        last = np.iinfo(np.int64).max
        self.numbers = ParameterTuple(_fixed(e, "numbers", np.append(keys, last)) for e, (keys, _) in enumerate(rows))
        self.weights = ParameterTuple(
            _fixed(e, "weight", np.concatenate([weight, np.zeros_like(weight, shape=(1, weight.shape[1]))]))
            for e, (_, weight) in enumerate(rows)
        )
        self.note, self.noted = ops.ScatterNdUpdate(), ops.GatherNd()
        self.lookup, self.search, self.join = ops.Gather(), ops.SearchSorted(ms.int32), ops.Concat(1)

    def construct(self, ids_T, domains_T, positions_T, lane_B1, index_BC):
        lane_T, index_T = F.reshape(lane_B1 + index_BC * 0, (-1,)), F.reshape(index_BC, (-1,))
        before = self.note(self.before, F.stack((lane_T, index_T + 1), 1), ids_T)
        before_T = self.noted(before, F.stack((lane_T, index_T), 1))
        before_T = F.select(F.equal(positions_T, 0), F.zeros_like(before_T) + self.none, before_T)
        key_ET = self.lookup(self.row, ids_T, 1) + self.lookup(self.row_before, before_T, 1)
        key_ET = key_ET - self.rows_E1 * F.cast(F.greater_equal(key_ET, self.rows_E1), ms.int32)
        parts: tuple = ()
        for e in range(len(self.of_domain)):
            key_T = F.cast(key_ET[e], ms.int64) + F.cast(domains_T, ms.int64) * self.of_domain[e]
            at_T = self.search(self.numbers[e], key_T)
            is_met_T = F.equal(self.lookup(self.numbers[e], at_T, 0), key_T)
            at_T = F.select(is_met_T, at_T, F.zeros_like(at_T) + self.unmet[e])
            parts += (self.lookup(self.weights[e], at_T, 0),)
        return self.join(parts)


def _fixed(entry: int, name: str, values: np.ndarray) -> Parameter:
    return Parameter(Tensor(np.ascontiguousarray(values)), f"{entry}.{name}", requires_grad=False)
