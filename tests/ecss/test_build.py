from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from helpers.toy import toy_config

from pangu_sigma.ecss.store import DeviceStore, HostStore, build, make_network, make_store
from pangu_sigma.ecss.tiers import HostTier

pytestmark = pytest.mark.usefixtures("graph_mode")


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
