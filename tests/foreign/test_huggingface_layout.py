from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import foreign_files as foreign

from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.dense_files import open_dense_model


@pytest.mark.parametrize(
    ("form", "dtype", "output"),
    [
        ("safetensors", "float32", "c_proj"),
        ("safetensors-index", "float16", "out_proj"),
        ("bin", "float16", "c_proj"),
        ("bin-index", "float32", "out_proj"),
    ],
)
def test_every_form_is_read(tmp_path: Path, dtype: str, form: str, output: str):
    values = foreign.parent(dtype)
    tensors = foreign.in_huggingface(values, output)
    mask = {"transformer.h.0.attn.bias": np.zeros((1, 1, 2, 2), np.uint8), "lm_head.weight": values["embedding"]}
    model = open_dense_model(foreign.write_huggingface(tmp_path / "a", {**tensors, **mask}, form))
    foreign.assert_values(model, values)
    assert set(model.unused) == set(mask)
    assert (model.layout, model.heads, model.activation, model.activation_known) == ("huggingface", 8, "erf", True)
    assert model.made_from["layers.1.attention.output.weight"] == f"transformer.h.1.attn.{output}.weight: transposed"


@pytest.mark.parametrize(
    ("named", "activation", "known"),
    [("gelu", "erf", True), ("gelu_new", "tanh", True), ("quick_gelu", "fast_gelu", True), (None, "erf", False)],
)
def test_the_configuration_says_which_gelu(tmp_path: Path, named: str | None, activation: str, known: bool):
    folder = foreign.write_huggingface(tmp_path / "a", foreign.in_huggingface(foreign.parent()), "safetensors")
    (folder / "config.json").write_text(json.dumps(foreign.huggingface_config(activation_function=named)))
    model = open_dense_model(folder)
    assert (model.activation, model.activation_known) == (activation, known)


def test_bfloat16_becomes_float32(tmp_path: Path):
    values = foreign.parent()
    folder = foreign.write_huggingface(tmp_path / "a", foreign.in_huggingface(values), "safetensors")
    short = {name: (value.view(np.uint32) >> 16).astype(np.uint16) for name, value in values.items()}
    foreign.write_huggingface(tmp_path / "b", foreign.in_huggingface(short), "safetensors")
    content = (tmp_path / "b" / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(b'"U16"', b'"BF16"')
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    model = open_dense_model(folder)
    for name, value in short.items():
        np.testing.assert_array_equal(model.tensors[name].read(), (value.astype(np.uint32) << 16).view(np.float32))


def test_a_head_that_is_not_the_word_table_is_refused_when_it_is_read(tmp_path: Path):
    values = foreign.parent()
    tensors = {**foreign.in_huggingface(values), "lm_head.weight": values["embedding"] + 1}
    model = open_dense_model(foreign.write_huggingface(tmp_path / "a", tensors, "safetensors"))
    with pytest.raises(LayoutError, match=r"lm_head\.weight is not equal to transformer\.wte\.weight"):
        model.tensors["embedding"].read()


def test_of_two_formats_safetensors_are_read_and_the_other_is_listed(tmp_path: Path):
    folder = foreign.write_huggingface(tmp_path / "a", foreign.in_huggingface(foreign.parent()), "safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"whatever")
    assert [*open_dense_model(folder).unused] == ["pytorch_model.bin"]
