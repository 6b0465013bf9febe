"""The list of a model's weights is the network's and the store's, and that of the ranks of a cluster."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from helpers.small_clusters import MODEL_CONFIGS, by_hand

from pangu_sigma.config_file import load_config
from pangu_sigma.model.arrays import dense_shapes, stored_shapes
from pangu_sigma.npu.cuts import dense_weights, expert_arrays


@pytest.mark.parametrize("path", sorted(MODEL_CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_weights_add_up_to_the_configurations_count(path: Path):
    config = load_config(path)
    shapes = dense_shapes(config) | stored_shapes(config)
    assert sum(map(math.prod, shapes.values())) == config.num_params().total
    stages = range(config.parallel.stages)
    arrays = [a for stage in stages for a in [*dense_weights(config, stage), *expert_arrays(config, stage)]]
    assert {a.name: a.shape for a in arrays if a.kind == "weight"} == shapes


def test_names_shapes_and_order_are_the_networks_and_the_stores(graph_mode):
    from pangu_sigma.ecss.store import array_specs
    from pangu_sigma.model.pangu_sigma import PanGuSigma

    config = by_hand(ecss={"moments": "bfloat16"}, parallel={"expert": 1, "tensor": 1})
    network = PanGuSigma(config.model, config.slots)
    actual = {name: tuple(p.shape) for name, p in network.parameters_and_names()}
    assert actual == dense_shapes(config)
    bits = {"uint16": "bfloat16"}
    specs = [(s.key, s.kind, s.shape, bits.get(s.dtype, s.dtype)) for s in array_specs(config)]
    assert [(a.name, a.kind, a.shape, a.dtype) for a in expert_arrays(config)] == specs
    assert [(s.key, s.shape) for s in array_specs(config) if s.kind == "weight"] == [*stored_shapes(config).items()]
