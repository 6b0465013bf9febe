"""The plan that the graph makes sends every token to the expert of its table, whatever the number of tokens."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from pangu_sigma.generate.graph.block_plan import block_plan
from pangu_sigma.model.declare import as_tensor
from pangu_sigma.rre.table import RoutingTable, draw_tables
from pangu_sigma.sections import RoutingConfig

pytestmark = pytest.mark.usefixtures("graph_mode")

DOMAINS, VOCABULARY, EXPERTS, LAYERS = 3, 50, 4, 2


class OfTexts(nn.Cell):
    """The plan with the number of texts as the size of an array, as in the graph that is exported."""

    def __init__(self, table: RoutingTable):
        super().__init__()
        self.plan = block_plan(table)
        one = Tensor(shape=[None], dtype=ms.int32)
        self.set_inputs(one, one, one, one)

    def construct(self, ids_T, domains_T, positions_T, texts_B):
        return self.plan(ids_T, domains_T, positions_T, texts_B.shape[0])


@pytest.fixture(scope="module", params=["random", "balanced", "segments"])
def table(request) -> RoutingTable:
    """balanced: with ids that are spread over several experts by position. segments: two own ones, and a common one between."""
    counts_DV = np.random.default_rng(0).zipf(1.5, (DOMAINS, VOCABULARY)).astype(float)
    kinds = (["own", "common", "own"], 5) if request.param == "segments" else ()
    routing = RoutingConfig(table="random" if request.param == "random" else "balanced")
    found = draw_tables(routing, LAYERS, DOMAINS, VOCABULARY, EXPERTS, counts_DV, *kinds)
    assert (found.spread_DV > 1).any() == (request.param != "random")
    assert not kinds or found.common_spread_V.max() > 1
    return found


def test_every_token_meets_its_expert_once(table, graph_mode):
    plan, rng = OfTexts(table), np.random.default_rng(1)
    for texts, length in ((1, 1), (8, 1), (1, 7), (3, 5), (2, 40), (1, 64)):
        ids_T = rng.integers(0, VOCABULARY, texts * length)
        domains_T = np.repeat(rng.integers(0, DOMAINS, texts), length)
        positions_T = rng.integers(0, 9, len(ids_T))
        inputs = (ids_T, domains_T, positions_T, np.zeros(texts))
        active, order, inverse = plan(*(as_tensor(each.astype(np.int32)) for each in inputs))
        expected_NT = table.route(ids_T, domains_T, positions_T)
        assert len(active) == len(order) == len(inverse) == len(expected_NT)
        for expected_T, *arrays in zip(expected_NT, active, order, inverse, strict=True):
            active_A, order_Ab, inverse_T = (each.asnumpy() for each in arrays)
            rows = order_Ab.shape[1]
            np.testing.assert_array_equal(active_A[inverse_T // rows], expected_T)
            np.testing.assert_array_equal(order_Ab.reshape(-1)[inverse_T], np.arange(len(ids_T)))
            assert len(np.unique(inverse_T)) == len(ids_T)
            if table.common_spread_V is None:
                assert active_A.max() < DOMAINS * EXPERTS
                assert rows == -(-length // EXPERTS), "one row where every token can have a block of its own"
                assert len(active_A) <= (len(ids_T) if rows == 1 else len(ids_T) / rows + texts * EXPERTS)
