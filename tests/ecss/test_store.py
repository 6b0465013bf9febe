from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from helpers.toy import toy_config
from mindspore import nn

from pangu_sigma.ecss.store import DeviceStore, HostStore, build, make_network, make_store
from pangu_sigma.ecss.tiers import HostTier
from pangu_sigma.model.declare import as_input
from pangu_sigma.model.pangu_sigma import FFN_TENSORS

pytestmark = pytest.mark.usefixtures("graph_mode")

PARTS = [*FFN_TENSORS, *(f"{t}.{part}" for t in FFN_TENSORS for part in ("moment", "variance")), "step"]


class Fetch(nn.Cell):
    def __init__(self, store: nn.Cell):
        super().__init__()
        self.store = store

    def construct(self, active_A):
        return self.store.fetch(active_A)


def test_fetch_returns_exactly_the_active_rows_and_unused_places_do_no_harm(graph_mode):
    """The plan writes one past the last expert there."""
    store = make_store(toy_config())
    active_A = tuple(np.array([[1, 3, 4, 7], [0, 2, 8, 8]], np.int32))
    fetched = Fetch(store)(as_input(active_A))
    for layer, of_layer in enumerate(fetched):
        for actual, tensor in zip(of_layer, FFN_TENSORS, strict=True):
            stored = store.segments[layer].named[tensor].asnumpy()
            assert actual.shape == (4, *stored.shape[1:])
            used = active_A[layer] < 8
            assert (actual.asnumpy()[used] == stored[active_A[layer][used]]).all()
            assert np.isfinite(actual.asnumpy()).all()
    assert len(fetched) == 2


@pytest.mark.parametrize("kind", ["replicated", "independent"])
def test_experts_start_as_copies_only_when_asked(graph_mode, kind):
    store = make_store(toy_config(model={"expert_init": kind}))
    for layer in range(2):
        w1 = store.segments[layer].named["w1"].asnumpy()
        assert (w1[1:] == w1[0]).all() == (kind == "replicated")
        assert w1.std() == pytest.approx(0.02, rel=0.1)
    assert (store.segments[0].named["w1"].asnumpy() != store.segments[1].named["w1"].asnumpy()).any()


def test_a_store_knows_every_array_of_a_layer(graph_mode):
    store = make_store(toy_config())
    for layer in range(2):
        named = store.segments[layer].named
        assert sorted(named) == sorted(PARTS)
        assert all(p.shape[0] == 8 for p in named.values())


def test_both_are_drawn_as_one_after_the_other():
    config = toy_config()
    ms.set_seed(5)
    network, store = build(config)
    ms.set_seed(5)
    alone, behind = make_network(config), make_store(config)
    for cells in ((network, alone), (store, behind)):
        ours, theirs = ([p.asnumpy() for p in cell.get_parameters()] for cell in cells)
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("enabled", "kind"), [(True, HostStore), (False, DeviceStore)])
def test_the_store_is_of_the_kind_and_in_the_tier_that_are_asked_for(enabled, kind):
    tier = HostTier()
    _, store = build(toy_config(ecss={"enabled": enabled}), tier=tier)
    assert type(store) is kind
    assert store.tier is tier


def test_the_network_computes_in_the_configured_type_unless_another_is_given():
    config = toy_config(train={"compute_dtype": "float16"})
    assert build(config)[0].dtype == ms.float16
    assert build(config, dtype=ms.float32)[0].dtype == ms.float32
