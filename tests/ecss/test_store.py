from __future__ import annotations

import numpy as np
import pytest
from helpers.sequences import batch_of
from helpers.toy import Toy, toy_config
from mindspore import nn

from pangu_sigma.ecss.store import make_store
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


def state_of(toy: Toy) -> list[dict[str, np.ndarray]]:
    """Per RRE layer, every array of the store, each [K, …]."""
    layers = range(toy.config.model.rre_layers)
    return [{name: p.asnumpy().copy() for name, p in toy.store.segments[n].named.items()} for n in layers]


@pytest.fixture(scope="module")
def host(graph_mode, tmp_path_factory) -> Toy:
    """Four domains of two experts; two domains, so at most four experts of eight, in a step."""
    return Toy.build(toy_config(), tmp_path_factory.mktemp("host"))


def test_fetch_returns_exactly_the_active_rows_and_unused_places_do_no_harm(graph_mode):
    """The plan writes one past the last expert there."""
    store = make_store(toy_config())
    active_A = tuple(np.array([[1, 3, 4, 7], [0, 2, 8, 8]], np.int32))
    fetched = Fetch(store)(as_input(active_A))
    for layer, of_layer in enumerate(fetched):
        for found, tensor in zip(of_layer, FFN_TENSORS, strict=True):
            stored = store.segments[layer].named[tensor].asnumpy()
            assert found.shape == (4, *stored.shape[1:])
            used = active_A[layer] < 8
            assert (found.asnumpy()[used] == stored[active_A[layer][used]]).all()
            assert np.isfinite(found.asnumpy()).all()
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


def test_an_expert_that_was_never_active_has_no_state(host):
    host.reset()
    for step in range(3):
        host.run(batch_of(host, (0, 1), seed=step))
    for layer in state_of(host):
        for name in PARTS:
            if "." in name or name == "step":
                assert not layer[name][4:].any(), name
                assert layer[name][:4].any(), name


def test_without_ecss_an_expert_without_tokens_takes_an_ordinary_adam_step(tmp_path):
    """Its gradient is zero, so its moments decay and its weights shrink: what ECSS off means."""
    toy = Toy.build(toy_config(ecss={"enabled": False}), tmp_path)
    toy.reset()
    toy.run(batch_of(toy, (0, 1)))
    before = state_of(toy)
    toy.run(batch_of(toy, (2, 3)))
    for old, new in zip(before, state_of(toy), strict=True):
        assert (new["step"] == 2).all()
        np.testing.assert_allclose(new["w1.moment"][:4], 0.8 * old["w1.moment"][:4], rtol=1e-6)
        np.testing.assert_allclose(new["w1.variance"][:4], 0.95 * old["w1.variance"][:4], rtol=1e-6)


def test_places_that_no_expert_needs_change_nothing(host):
    """One domain in both blocks uses two entries of four."""
    host.reset()
    batch = batch_of(host, (1, 1))
    arrays = batch.arrays()
    for active_A, used_A1 in zip(arrays.active_A, arrays.used_A1, strict=True):
        assert active_A[2:].tolist() == [8, 8]
        assert (used_A1[2:] == used_A1[2]).all()
    host.run(batch)
    for layer in state_of(host):
        assert layer["step"].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


def test_each_layer_updates_the_experts_of_its_own_table(host):
    """Text of one token has one expert a layer, and not the same one in both."""
    host.reset()
    first_NDV = host.batches.table.first_NDV
    token = int(np.flatnonzero(first_NDV[0, 2, 10:] != first_NDV[1, 2, 10:])[0]) + 10
    batch = host.batches.assemble(np.full((1, 8, 17), token), np.array([2, 2]))
    before = state_of(host)
    host.run(batch)
    for n, (old, new) in enumerate(zip(before, state_of(host), strict=True)):
        expert = 2 * 2 + int(first_NDV[n, 2, token])
        assert np.flatnonzero(new["step"]).tolist() == [expert]
        assert np.flatnonzero((old["w1"] != new["w1"]).any(axis=(1, 2))).tolist() == [expert]
