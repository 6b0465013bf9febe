from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import foreign_files as foreign
from helpers.alpha_peers import megatron_sizes, run_peers

from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.convert.alpha import write_alpha
from pangu_sigma.foreign.dense_files import open_dense_model
from pangu_sigma.foreign.dense_model import LayoutError


def lazily(values: dict[str, np.ndarray]) -> dict[str, LazyArray]:
    return {name: LazyArray.of(array) for name, array in values.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("ranks", [1, 4, 8])
def test_what_is_written_is_read_back(tmp_path: Path, dtype: str, ranks: int):
    values = foreign.parent(dtype)
    files = write_alpha(lazily(values), tmp_path / "a", heads=foreign.HEADS, activation="tanh", ranks=ranks)
    assert [file.exists() for file in files] == [True] * ranks
    model = open_dense_model(tmp_path / "a")
    assert (model.layout, model.heads, model.activation, model.activation_known) == (
        "megatron",
        foreign.HEADS,
        "tanh",
        True,
    )
    for name, array in values.items():
        read = model.tensors[name].read()
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, array, name)
    assert [one.name for one in model.unused if "rows" in one.name] == [
        "language_model.embedding.word_embeddings.weight, rows from 40"
    ]


def test_fast_gelu_is_kept_and_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        write_alpha(lazily(foreign.parent()), tmp_path / "a", heads=8, activation="fast_gelu")
    assert "fast GELU" in caplog.text
    assert open_dense_model(tmp_path / "a").activation == "fast_gelu"


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: t.pop("norm.gain"), {}, "norm.gain is missing"),
        (lambda t: t.pop("embedding"), {}, "embedding is missing"),
        (lambda t: t.update(extra=LazyArray.zeros((1,), "float32")), {}, "extra is missing, misshapen or too many"),
        (lambda t: t.update({"norm.gain": LazyArray.zeros((1,), "float32")}), {}, "norm.gain is missing, misshapen"),
        (lambda t: t.update({"norm.gain": LazyArray.zeros((16,), "int32")}), {}, "norm.gain is int32"),
        (lambda t: None, {"ranks": 3}, "ranks must divide the heads"),
        (lambda t: None, {"heads": 3}, "heads the hidden size"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path: Path, change: Any, options: dict, message: str):
    tensors = lazily(foreign.parent())
    change(tensors)
    with pytest.raises(LayoutError, match=message):
        write_alpha(tensors, tmp_path / "a", **{"heads": 8, "activation": "erf", **options})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_not_written_to(tmp_path: Path):
    (tmp_path / "a").mkdir()
    with pytest.raises(LayoutError, match="exists; choose another"):
        write_alpha(lazily(foreign.parent()), tmp_path / "a", heads=8, activation="erf")
    assert list((tmp_path / "a").iterdir()) == []


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
    for path in (tmp_path / "whole", tmp_path / "of_ranks", tmp_path / "older.pt"):
        model = open_dense_model(path)
        for _, name, ours, _, transposed in foreign.names():
            read = model.tensors[ours].read()
            assert read.dtype == (np.float16 if half else np.float32)
            np.testing.assert_array_equal(read.T if transposed else read, wanted[name], f"{path} {name}")
    assert {one.name for one in open_dense_model(tmp_path / "whole").unused} == {
        *("iteration", "optimizer", "random_rng_state", "np_rng_state", "torch_rng_state", "cuda_rng_state"),
        "rng_tracker_states",
    }


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "dtype"), [(1, "float32"), (4, "float16")])
def test_what_is_written_is_loaded_by_pcl_pangu(tmp_path: Path, ranks: int, dtype: str):
    values = foreign.parent(dtype)
    write_alpha(lazily(values), tmp_path / "a", heads=foreign.HEADS, activation="erf", ranks=ranks)
    whole = foreign.in_megatron(values)
    words = whole["language_model.embedding.word_embeddings.weight"]
    padding = np.zeros((128 * ranks - len(words), foreign.HIDDEN), dtype)
    whole["language_model.embedding.word_embeddings.weight"] = np.concatenate([words, padding])
    for rank in range(ranks):
        options = sizes(fp16=dtype == "float16", model_parallel_size=ranks, padded_vocab_size=128 * ranks)
        run_peers("read", tmp_path / "a", [rank], options)
        loaded = np.load(tmp_path / "a" / f"values_{rank}.npz")
        assert set(loaded) == set(whole)
        for name, value in whole.items():
            np.testing.assert_array_equal(loaded[name], foreign.of_rank(name, value, rank, ranks), name)
