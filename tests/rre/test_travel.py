"""The all-to-all layout, with one rank: the same network and gradients as the local one, and known drops."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.toy import Toy, toy_config, toy_network, toy_table, toy_tokenizer

from pangu_sigma.config import Config
from pangu_sigma.data.batches import Batch, BatchLoader
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.ranks.layout import active_entries
from pangu_sigma.rre.experts import Experts
from pangu_sigma.rre.travel import UniformFFN, exchange, exchanged_experts
from pangu_sigma.sections import Activation, Segment
from pangu_sigma.training.step import StepResult, TrainStep

pytestmark = pytest.mark.usefixtures("graph_mode")


def exchanged_toy(config: Config, like: Toy, folder) -> Toy:
    """A toy of the all-to-all layout on the text of another one, which `folder` holds."""

    def routed(activation: Activation, kind: Segment) -> Experts:
        return exchanged_experts(exchange(1, active_entries(config, kind)), UniformFFN(activation))

    network = PanGuSigma(config.model, config.slots, routed=routed)
    store = toy_network(config)[1]
    step = TrainStep(config, network, store)
    step.set_train()
    batches = BatchLoader(config, folder, toy_tokenizer(config.slots), toy_table(config), layout="all_to_all")
    toy = Toy(config, batches, network, store, step)
    toy.reset(weights_from=like)
    return toy


def loss_of(result: StepResult) -> float:
    return float(result.block_loss_GM[0].asnumpy().sum())


def first(toy: Toy) -> Batch:
    return toy.batches.next(toy.batches.start())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("toy")


@pytest.fixture(scope="module")
def local(graph_mode, folder) -> Toy:
    return Toy.build(toy_config(), folder)


@pytest.fixture(scope="module")
def room(local, folder) -> Toy:
    """There is room for every token."""
    return exchanged_toy(toy_config(parallel={"capacity_factor": 4.0}), local, folder)


def test_with_room_for_all_a_step_is_the_local_one(local, room):
    local.reset()
    room.reset(weights_from=local)
    cursor, other = room.batches.start(), local.batches.start()
    for _ in range(3):
        batch, expected = room.batches.next(cursor), local.batches.next(other)
        assert batch.digest == expected.digest
        assert batch.plan.dropped == 0
        one, two = room.run(batch), local.run(expected)
        assert loss_of(one) == pytest.approx(loss_of(two), rel=1e-6)
        assert float(one.norm.asnumpy()) == pytest.approx(float(two.norm.asnumpy()), rel=1e-5)
    found, expected = room.snapshot(), local.snapshot()
    for name in expected:
        if "moment" in name and "key.bias" not in name:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-6, err_msg=name)


def test_a_token_without_room_keeps_its_residual(local, room, folder):
    """The same as an expert that answers nothing: rows beyond the capacity are cut out of the local plan by hand."""
    local.reset()
    toy = exchanged_toy(toy_config(parallel={"capacity_factor": 0.5, "overflow": "drop"}), local, folder)
    batch = first(toy)
    inverse_NT, order_NT = batch.plan.plans[0].inverse_NT, batch.plan.plans[0].order_NT
    assert batch.plan.dropped == (inverse_NT < 0).sum() > 0
    assert loss_of(toy.run(batch)) != pytest.approx(loss_of(local.run(first(local))), rel=1e-4)
    toy.reset(weights_from=local)
    room.reset(weights_from=local)
    wide = first(room).arrays()
    lost = inverse_NT < 0
    for layer in range(len(lost)):  # the rows are there, and nobody reads them
        wide.order_GNT[0, layer, wide.inverse_GNT[0, layer, lost[layer]]] = -1
        wide.inverse_GNT[0, layer, lost[layer]] = -1
    assert (wide.order_GNT >= 0).sum() == (order_NT >= 0).sum()
    one, two = toy.run(batch), room.run_arrays(wide)
    assert loss_of(one) == pytest.approx(loss_of(two), rel=1e-6)
    assert float(one.norm.asnumpy()) == pytest.approx(float(two.norm.asnumpy()), rel=1e-5)
