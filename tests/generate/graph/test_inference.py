"""The deployed graph: one compilation takes any batch, length, number of active experts and capacity."""

from __future__ import annotations

import inspect

import mindspore as ms
import numpy as np
import pytest
from helpers.toy import SLOT_ROWS, toy_config, toy_network
from mindspore import Tensor

from pangu_sigma.config import Config
from pangu_sigma.generate.graph.inference import InferenceGraph, any_length
from pangu_sigma.model.declare import as_tensor
from pangu_sigma.model.pangu_sigma import PanGuSigma

pytestmark = pytest.mark.usefixtures("graph_mode")

EXPERTS = 8
"""Of a layer: four domains of two."""


def inputs_by_hand(
    rows_BS: np.ndarray, expert_NBS: np.ndarray, last_B: list[int], capacity: int = 0
) -> list[np.ndarray]:
    """Inputs of the graph for sequences of one document each, whose tokens go to the given experts.

    capacity: rows of each expert, if more than the fullest one needs.
    """
    batch, length = rows_BS.shape
    active, orders, inverses = [], [], []
    most = max(len(np.unique(layer)) for layer in expert_NBS)
    capacity = max(capacity, *(np.bincount(layer.ravel()).max() for layer in expert_NBS))
    for expert_T in expert_NBS.reshape(len(expert_NBS), -1):
        experts = np.unique(expert_T)
        order_AC, inverse_T = np.zeros((most, capacity), np.int32), np.zeros(len(expert_T), np.int32)
        for entry, expert in enumerate(experts):
            tokens = np.flatnonzero(expert_T == expert)
            order_AC[entry, : len(tokens)] = tokens
            inverse_T[tokens] = entry * capacity + np.arange(len(tokens))
        active.append(np.pad(experts, (0, most - len(experts))))
        orders.append(order_AC)
        inverses.append(inverse_T)
    positions_BS = np.tile(np.arange(length), (batch, 1))
    slots_B = rows_BS[:, 0] // SLOT_ROWS
    flat_last_B = np.arange(batch) * length + last_B
    arrays = (rows_BS, positions_BS, np.zeros_like(rows_BS), slots_B, flat_last_B, active, orders, inverses)
    return [np.asarray(array, np.int32) for array in arrays]


@pytest.fixture(scope="module")
def graph(graph_mode) -> InferenceGraph:
    return deployed(toy_config())[0]


def deployed(config: Config) -> tuple[InferenceGraph, PanGuSigma, list[np.ndarray]]:
    """The graph with random weights, the network that trains with the same ones, and its experts."""
    network, store = toy_network(config)
    experts = [weight.asnumpy() for weight in store.weights]
    made = InferenceGraph(config, experts)
    values = {p.name: p.asnumpy() for p in network.trainable_params()}
    for parameter in made.network.trainable_params():
        parameter.set_data(Tensor(values.pop(parameter.name.removeprefix("network."))))
    assert not values, "every weight of the network that trains is one of the graph"
    made.set_train(False).set_inputs(*any_length(config))
    return made, network, experts


def logits(graph: InferenceGraph, *inputs: np.ndarray) -> np.ndarray:
    return graph(*map(as_tensor, inputs)).asnumpy()


def drawn(seed: int, batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows, each sequence in one of two slots, and an expert for each token and layer."""
    rng = np.random.default_rng(seed)
    slots_B1 = np.arange(batch)[:, None] % 2
    return slots_B1 * SLOT_ROWS + rng.integers(0, SLOT_ROWS, (batch, length)), rng.integers(
        0, EXPERTS, (2, batch, length)
    )


def test_a_sequence_has_its_logits_in_any_company(graph):
    """Alone; beside two others; filled up to a longer length; with more capacity than it needs."""
    rows_BS, expert_NBS = drawn(0, 3, 7)
    together = logits(graph, *inputs_by_hand(rows_BS, expert_NBS, [6, 6, 6]))
    assert (together.shape, together.dtype) == ((3, SLOT_ROWS), np.float32)
    for b in range(3):
        alone = logits(graph, *inputs_by_hand(rows_BS[b : b + 1], expert_NBS[:, b : b + 1], [6]))
        np.testing.assert_allclose(alone[0], together[b], rtol=2e-5, atol=2e-5)
    roomy = logits(graph, *inputs_by_hand(rows_BS, expert_NBS, [6, 6, 6], capacity=20))
    np.testing.assert_allclose(roomy, together, rtol=2e-5, atol=2e-5)
    filling, of_filling = drawn(1, 3, 4)
    longer_NBS = np.concatenate([expert_NBS, of_filling], axis=2)
    filled = logits(graph, *inputs_by_hand(np.concatenate([rows_BS, filling], axis=1), longer_NBS, [6, 6, 6]))
    np.testing.assert_allclose(filled, together, rtol=2e-5, atol=2e-5)
    assert np.abs(together[0] - together[1]).max() > 0.1, "sequences should differ"


def test_the_expert_of_a_token_decides_its_logits(graph):
    rows_BS, expert_NBS = drawn(2, 1, 5)
    other_NBS = expert_NBS.copy()
    other_NBS[1, 0, 4] = (other_NBS[1, 0, 4] + 1) % EXPERTS
    last, other = (logits(graph, *inputs_by_hand(rows_BS, experts, [4])) for experts in (expert_NBS, other_NBS))
    assert np.abs(last - other).max() > 1e-3
    before, same = (logits(graph, *inputs_by_hand(rows_BS, experts, [3])) for experts in (expert_NBS, other_NBS))
    np.testing.assert_allclose(before, same, rtol=2e-5, atol=2e-5, err_msg="no token sees those after it")


def test_a_model_without_experts_takes_the_same_inputs(graph_mode):
    config = toy_config(model={"rre_layers": 0, "dense_layers": 2})
    graph, *_ = deployed(config)
    rows_BS, _ = drawn(3, 2, 6)
    inputs = inputs_by_hand(rows_BS, np.zeros((1, 2, 6), np.int64), [5, 2])
    found = logits(graph, *inputs)
    assert np.isfinite(found).all()
    shorter = logits(graph, *inputs_by_hand(rows_BS[1:, :3], np.zeros((1, 1, 3), np.int64), [2]))
    np.testing.assert_allclose(shorter[0], found[1], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("layers", [0, 2])
def test_the_open_inputs_are_those_of_the_graph(layers: int):
    """A model without RRE layers has plans of one, which its graph does not read."""
    inputs = any_length(toy_config(model={"rre_layers": layers}))
    names = list(inspect.signature(InferenceGraph.construct).parameters)[1:]
    assert len(inputs) == len(names)
    for name, tensor in zip(names, inputs, strict=True):
        axes = name.rpartition("_")[2]
        assert tensor.dtype == ms.int32
        assert list(tensor.shape) == [max(layers, 1) if axis == "N" else -1 for axis in axes], name
