from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import foreign_files as foreign
from helpers.alpha_peers import megatron_sizes, run_peers

from pangu_sigma.foreign.dense_files import open_dense_model
from pangu_sigma.foreign.dense_model import DenseModel
from pangu_sigma.foreign.names import counterparts


def assert_equal(path: Path, values: dict[str, np.ndarray]) -> DenseModel:
    model = open_dense_model(path)
    foreign.assert_values(model, values)
    return model


def test_names_and_orientations_are_those_of_pcl_pangu():
    theirs = {name: (ours, flip) for _, name, ours, _, flip in foreign.names()}
    assert {name: rule[:2] for name, rule in counterparts("megatron", Path("a"), theirs).items()} == theirs


@pytest.mark.parametrize(("dtype", "ranks"), [("float32", 1), ("float16", 4), ("float32", 8)])
def test_megatron_and_deepspeed_are_read(tmp_path: Path, dtype: str, ranks: int):
    values = foreign.parent(dtype)
    model = assert_equal(foreign.write_megatron(tmp_path / "m", values, ranks), values)
    assert (model.layout, model.heads, model.activation, model.activation_known) == ("megatron", 8, "erf", True)
    assert set(model.unused) == set(foreign.training_state())
    joined = f"joined from {ranks} files, transposed" if ranks > 1 else "transposed"
    assert model.made_from["layers.2.ffn.w2"] == (
        f"language_model.transformer.topQueryLayer.mlp.dense_4h_to_h.weight: {joined}"
    )
    model = assert_equal(foreign.write_deepspeed(tmp_path / "d", values, ranks), values)
    assert (model.layout, model.heads, model.activation, model.activation_known) == ("deepspeed", None, "erf", False)


def test_the_folder_of_a_step_and_a_bare_file_are_read(tmp_path: Path):
    values = foreign.parent()
    folder = foreign.write_megatron(tmp_path / "m", values)
    step = folder / "iter_0000007"
    for path in (folder, step, step / "mp_rank_00", step / "mp_rank_00" / "model_optim_rng.pt"):
        model = assert_equal(path, values)
        assert set(model.unused) == set(foreign.training_state()), "the file that is read is used"
    (folder / "latest_checkpointed_iteration.txt").unlink()
    assert_equal(folder, values)
    step.rename(folder / "release")
    (folder / "latest_checkpointed_iteration.txt").write_text("release\n")
    assert_equal(folder, values)
    folder = foreign.write_deepspeed(tmp_path / "d", values)
    assert_equal(folder / "global_step7", values)
    assert_equal(folder / "global_step7" / "mp_rank_00_model_states.pt", values)


@pytest.mark.parametrize(
    ("given", "activation"),
    [({"openai_gelu": True}, "tanh"), ({"bias_gelu_fusion": True}, "tanh"), ({"onnx_safe": True}, "erf"), ({}, "erf")],
)
def test_the_arguments_say_which_gelu(tmp_path: Path, given: dict, activation: str):
    value = {"args": foreign.arguments(1, **given), "model": foreign.nested(foreign.in_megatron(foreign.parent()))}
    (tmp_path / "a.pt").write_bytes(foreign.torch_zip(value))
    model = open_dense_model(tmp_path / "a.pt")
    assert (model.activation, model.activation_known) == (activation, True)


@pytest.mark.parametrize(("rows", "kept"), [(40_064, 40_000), (40_960, 40_000), (40_000, 40_000), (50_304, 50_304)])
def test_padding_of_the_vocabulary_is_cut_off_and_listed(tmp_path: Path, rows: int, kept: int):
    values = foreign.parent("float16", words=rows)
    model = open_dense_model(foreign.write_megatron(tmp_path / "m", values, 4))
    assert model.vocabulary == kept
    np.testing.assert_array_equal(model.tensors["embedding"].read(), values["embedding"][:kept])
    padding = [name for name, reason in model.unused.items() if "padding" in reason]
    assert [f"rows from {kept}" in name for name in padding] == [True] * (kept < rows)


def sizes(**more: Any) -> str:
    given = {
        **{"num_layers": foreign.LAYERS - 1, "hidden_size": foreign.HIDDEN, "num_attention_heads": foreign.HEADS},
        **{"max_position_embeddings": foreign.LENGTH, "padded_vocab_size": 512},
    }
    return megatron_sizes(**{**given, **more})


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "half"), [(1, False), (4, True), (8, False)])
def test_what_pcl_pangu_saves_and_splits_is_read(tmp_path: Path, ranks: int, half: bool):
    run_peers("write", tmp_path, [ranks], sizes(fp16=half))
    wanted = np.load(tmp_path / "values.npz")
    assert set(wanted) == {name for _, name, *_ in foreign.names()}
    for path in (tmp_path / "whole", tmp_path / "of_ranks"):
        model = open_dense_model(path)
        for _, name, ours, _, transposed in foreign.names():
            read = model.tensors[ours].read()
            assert read.dtype == (np.float16 if half else np.float32)
            np.testing.assert_array_equal(read.T if transposed else read, wanted[name], f"{path} {name}")
    assert set(open_dense_model(tmp_path / "whole").unused) == {
        *("iteration", "optimizer", "random_rng_state", "np_rng_state", "torch_rng_state", "cuda_rng_state"),
        "rng_tracker_states",
    }
