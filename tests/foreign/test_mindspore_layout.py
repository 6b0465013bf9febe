from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import foreign_files as foreign

from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.dense_files import open_dense_model
from pangu_sigma.foreign.names import counterparts


def test_names_and_orientations_are_those_of_pcl_pangu():
    theirs = {name: (ours, flip) for name, _, ours, flip, _ in foreign.names() if "_embedding" not in name}
    assert {name: rule[:2] for name, rule in counterparts("mindspore", Path("a"), theirs).items()} == theirs


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_one_file_that_mindspore_saved_is_read(tmp_path: Path, dtype: str):
    import mindspore as ms

    values = foreign.parent(dtype)
    state = {
        "adam_m.backbone.layernorm.gamma": np.zeros(3, np.float32),
        "global_step": np.int32(3),
        "scale_sense": np.float32(1),
    }
    saved = {**foreign.in_mindspore(values), **state}
    ms.save_checkpoint(
        [{"name": name, "data": ms.Tensor(np.ascontiguousarray(value))} for name, value in saved.items()],
        str(tmp_path / "a.ckpt"),
    )
    for path in (tmp_path / "a.ckpt", tmp_path):
        model = open_dense_model(path)
        foreign.assert_values(model, values)
        assert set(model.unused) == set(state)
        assert (model.layout, model.heads, model.activation, model.activation_known) == (
            "mindspore",
            None,
            "tanh",
            False,
        )


@pytest.mark.parametrize(
    ("data", "tensor", "stretches", "dtype"),
    [(1, 1, 1, "float32"), (1, 4, 1, "float16"), (2, 4, 2, "float32"), (8, 8, 2, "float16"), (8, 1, 8, "float32")],
)
def test_the_files_of_ranks_are_joined_by_the_strategy(tmp_path: Path, data, tensor, stretches, dtype):
    values = foreign.parent(dtype)
    model = open_dense_model(foreign.write_release(tmp_path / "a", values, data, tensor, stretches))
    foreign.assert_values(model, values)
    assert [*model.unused] == ["global_step"]
    how = f"joined from {tensor * stretches} files" if tensor * stretches > 1 else "copied"
    assert model.made_from["layers.0.ffn.w2"] == f"backbone.blocks.0.output.projection.weight: {how}"


def test_the_512_files_of_the_release_are_joined(tmp_path: Path):
    values = foreign.parent("float16", hidden=64, layers=2)
    model = open_dense_model(foreign.write_release(tmp_path / "a", values, 64, 8, 8, layers=2))
    foreign.assert_values(model, values)


def test_a_rank_whose_file_is_arranged_otherwise_is_read_as_well(tmp_path: Path):
    values = foreign.parent()
    folder = foreign.write_release(tmp_path / "a", values, 1, 4)
    file = folder / "filerted_1.ckpt"
    file.write_bytes(file.read_bytes() + foreign.ckpt({"epoch_num": np.array(3, np.int32)}))
    foreign.assert_values(open_dense_model(folder), values)


@pytest.mark.parametrize(
    ("words", "positions", "queries", "activation"),
    [
        (
            "embedding_table",
            "backbone.embedding.embedding.position_embedding.embedding_table",
            "backbone.top_query_embedding_table",
            "tanh",
        ),
        (
            "backbone.embedding.word_embedding.embedding_table",
            "backbone.embedding.position_embedding.embedding_table",
            "backbone.top_query_embedding.embedding_table",
            "fast_gelu",
        ),
        ("word_embedding_table", "position_embedding_table", "query_embedding_table", "fast_gelu"),
    ],
)
def test_tables_under_their_other_names_are_read(
    tmp_path: Path, words: str, positions: str, queries: str, activation: str
):
    values = foreign.parent()
    tensors = {name: value for name, value in foreign.in_mindspore(values).items() if "_embedding" not in name}
    tensors |= {words: values["embedding"], positions: values["positions"], queries: values["query_positions"]}
    (tmp_path / "a.ckpt").write_bytes(foreign.ckpt(tensors))
    model = open_dense_model(tmp_path / "a.ckpt")
    foreign.assert_values(model, values)
    assert (model.activation, model.activation_known) == (activation, False)


def test_a_table_that_is_there_twice_is_taken_from_the_checkpoint_and_the_other_is_listed(tmp_path: Path):
    values = foreign.parent()
    (tmp_path / "a.ckpt").write_bytes(foreign.ckpt(foreign.in_mindspore(values)))
    np.save(tmp_path / "word_embedding.npy", values["embedding"] + 1)
    model = open_dense_model(tmp_path)
    foreign.assert_values(model, values)
    assert [*model.unused] == ["word_embedding.npy"]


def test_a_model_of_pipeline_stages_is_refused(tmp_path: Path):
    tensors = foreign.in_mindspore(foreign.parent())
    renamed = {
        name.replace("top_query_layer", f"blocks.{foreign.LAYERS - 1}"): value for name, value in tensors.items()
    }
    (tmp_path / "a.ckpt").write_bytes(foreign.ckpt(renamed))
    with pytest.raises(
        LayoutError, match=r"backbone\.top_query_layer is missing and backbone\.blocks\.2 stands for it"
    ):
        open_dense_model(tmp_path / "a.ckpt")
