from __future__ import annotations

from pangu_sigma.config_file import config_path, load_config
from pangu_sigma.foreign.dense_model import tensor_shapes
from pangu_sigma.model.arrays import dense_shapes


def test_names_and_shapes_are_those_of_our_dense_network():
    config = load_config(config_path("alpha_2_6b"))
    model = config.model
    rows = config.slots * model.slot_rows
    assert tensor_shapes(model.hidden, model.ffn, model.layers, model.seq_length, rows) == dense_shapes(config)
