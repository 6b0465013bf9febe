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
from pangu_sigma.generate.graph.constants import fixed_parameter
from pangu_sigma.generate.weights import Weights
from pangu_sigma.rre.table import RoutingTable


class GraphRows(nn.Cell):
    """Rows of an exported graph, float32, looked up by the id of a token and the id before it."""

    def __init__(self, config: Config, table: RoutingTable, weights: Weights):
        """Copy the tables of the keys, and the keys and weights of the rows of each entry of `model.rows`. The parameter `before`
        holds the id before each token of a lane, and before the next one."""
        super().__init__()
        assert table.row_EV is not None and table.before_EV1 is not None
        entries, self.none = config.model.rows, table.row_EV.shape[1]
        self.before = fixed_parameter("before", np.zeros((1, config.model.seq_length + 1)))
        self.row = fixed_parameter("row", table.row_EV)
        self.row_before = fixed_parameter("row_before", table.before_EV1)
        self.rows_E1 = Tensor(np.array([[entry.rows] for entry in entries], np.int32))
        self.of_domain = tuple(entry.rows if entry.kind == "own" else 0 for entry in entries)
        # The last row of an entry is zeros, for all rows that training did not meet; no token has its key.
        unmet, numbers, padded_weights = list[int](), list[Parameter](), list[Parameter]()
        for e in range(len(entries)):
            keys_U, weight_UW = weights.rows(e)
            unmet.append(len(keys_U))
            numbers.append(fixed_parameter(f"{e}.numbers", np.append(keys_U, np.iinfo(np.int64).max), np.int64))
            padded_weights.append(fixed_parameter(f"{e}.weight", np.pad(weight_UW, ((0, 1), (0, 0))), np.float32))
        self.unmet, self.numbers, self.weights = tuple(unmet), ParameterTuple(numbers), ParameterTuple(padded_weights)
        self.write_ids, self.read_ids = ops.ScatterNdUpdate(), ops.GatherNd()
        self.lookup, self.search, self.join = ops.Gather(), ops.SearchSorted(ms.int32), ops.Concat(1)

    def construct(self, ids_T, domains_T, positions_T, lane_B1, index_BC):
        """Return e_TH, for each token its rows of all entries side by side. index: index of each token in its lane."""
        lane_T, index_T = F.reshape(lane_B1 + index_BC * 0, (-1,)), F.reshape(index_BC, (-1,))
        # The ids become the ids before the next tokens, of which the last one is read by a later call.
        before = self.write_ids(self.before, F.stack((lane_T, index_T + 1), 1), ids_T)
        before_T = self.read_ids(before, F.stack((lane_T, index_T), 1))
        before_T = F.select(F.equal(positions_T, 0), F.zeros_like(before_T) + self.none, before_T)
        key_ET = self.lookup(self.row, ids_T, 1) + self.lookup(self.row_before, before_T, 1)
        key_ET = key_ET - self.rows_E1 * F.cast(F.greater_equal(key_ET, self.rows_E1), ms.int32)  # modulo rows_E1
        parts: tuple = ()
        for e in range(len(self.of_domain)):
            key_T = F.cast(key_ET[e], ms.int64) + F.cast(domains_T, ms.int64) * self.of_domain[e]
            row_T = self.search(self.numbers[e], key_T)
            is_met_T = F.equal(self.lookup(self.numbers[e], row_T, 0), key_T)
            row_T = F.select(is_met_T, row_T, F.zeros_like(row_T) + self.unmet[e])
            parts += (self.lookup(self.weights[e], row_T, 0),)
        return self.join(parts)
