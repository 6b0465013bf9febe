from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.config_file import load_config
from pangu_sigma.foreign.dense_model import DenseModel, LayoutError, check_tensors, tensor_shapes
from pangu_sigma.parallel.parameters import dense_weights
from pangu_sigma.shipped import config_path


def small() -> DenseModel:
    tensors = {name: LazyArray.zeros(shape, np.float32) for name, shape in tensor_shapes(8, 32, 3, 16, 40).items()}
    return DenseModel(Path("a"), "test", 8, 32, 2, 3, 16, 40, "fast_gelu", True, tensors)


def test_names_and_shapes_are_those_of_our_dense_network():
    config = load_config(config_path("alpha_2_6b"))
    model = config.model
    wanted = {array.name: array.shape for array in dense_weights(config)}
    rows = config.slots * model.slot_rows
    assert tensor_shapes(model.hidden, model.ffn, model.layers, model.seq_length, rows) == wanted


def test_a_tensor_that_is_missing_misshapen_or_too_many_is_refused_by_name():
    model = small()
    assert check_tensors(model) is model
    missing = {name: tensor for name, tensor in model.tensors.items() if name != "layers.2.ffn.w1"}
    with pytest.raises(LayoutError, match=r"layers\.2\.ffn\.w1 of shape \(32, 8\) is missing"):
        check_tensors(replace(model, tensors=missing))
    odd = model.tensors | {"norm.gain": LazyArray.zeros((9,), np.float32)}
    with pytest.raises(LayoutError, match=r"of shape \(9,\), norm\.gain must be \(8,\)"):
        check_tensors(replace(model, tensors=odd))
    with pytest.raises(LayoutError, match=r"layers\.7\.ffn\.w1 is no tensor of a model of 3 layers"):
        check_tensors(replace(model, tensors=model.tensors | {"layers.7.ffn.w1": LazyArray.zeros((1,), np.float32)}))
