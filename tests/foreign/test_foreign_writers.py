"""Parents that we did not write: each layout's own code saves and cuts one, and it is read back with its bits.

What Megatron of `pcl-pangu` saves is in test_megatron_layout.py; what its networks answer is in
tests/convert/test_independent_network.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import foreign_files as foreign
from helpers.alpha_peers import megatron_sizes, run_gptpangu, run_peers, run_release

from pangu_sigma.foreign.dense_files import open_dense_model
from pangu_sigma.foreign.dense_model import DenseModel
from pangu_sigma.foreign.strategy_file import Cut, read_strategy

# MindSpore


def write_before(folder: Path, values: dict[str, np.ndarray], layers: int = foreign.LAYERS) -> dict[str, np.ndarray]:
    """Write what alpha_release.py reads: the three tables, and the weights, which are given back by MindSpore's names."""
    folder.mkdir()
    tables = {"word": "embedding", "position": "positions", "top_query": "query_positions"}
    for name, ours in tables.items():
        np.save(folder / f"{name}_embedding.npy", values[ours])
    whole = foreign.in_mindspore(values, layers)
    weights = {name: np.ascontiguousarray(value) for name, value in whole.items() if "_embedding" not in name}
    np.savez(folder / "values.npz", **weights)
    return weights


def grid(
    data: int, tensor: int, stretches: int, hidden: int = foreign.HIDDEN, layers: int = foreign.LAYERS
) -> dict[str, int]:
    sizes = {"data": data, "tensor": tensor, "stretches": stretches, "length": foreign.LENGTH, "words": foreign.WORDS}
    return sizes | {"hidden": hidden, "layers": layers, "heads": foreign.HEADS}


def release_of(folder: Path) -> DenseModel:
    """The model in the folder that the programs wrote, without what no release has: the values, and a strategy of each rank."""
    (folder / "values.npz").unlink()
    first, *others = sorted(folder.glob("strategy_*.ckpt"))
    for file in others:
        assert read_strategy(file) == read_strategy(first)
        file.unlink()
    return open_dense_model(folder)


def cut_by_mindspore(folder: Path, weights: dict[str, np.ndarray], ranks: int) -> None:
    """Save the weights whole, and let MindSpore cut them into the ranks' files by the strategy that it wrote."""
    import mindspore as ms

    whole = folder.parent / "whole"
    (whole / "rank_0").mkdir(parents=True)
    saved = [{"name": name, "data": ms.Tensor(value)} for name, value in weights.items()]
    ms.save_checkpoint(saved, str(whole / "rank_0" / "a.ckpt"))
    cut = folder.parent / "cut"
    ms.transform_checkpoints(str(whole), str(cut), "of_", None, str(folder / "strategy_0.ckpt"))
    for rank in range(ranks):
        (cut / f"rank_{rank}" / f"of_{rank}.ckpt").rename(folder / f"filerted_{rank}.ckpt")


@pytest.mark.slow
def test_what_mindspore_cuts_and_saves_as_each_rank_is_read(tmp_path: Path):
    """`pcl-pangu`'s network compiled as each of four ranks; the optimizer cuts once more."""
    values, folder = foreign.parent(), tmp_path / "a"
    write_before(folder, values)
    run_release(folder, [0, 1, 2, 3], grid(2, 2, 2))
    foreign.assert_values(release_of(folder), values)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "tensor", "stretches", "dtype", "hidden", "layers"),
    [
        (2, 4, 2, "float16", 16, 3),
        (1, 4, 1, "float32", 16, 3),
        (4, 2, 2, "float32", 16, 3),
        (64, 8, 8, "float16", 64, 2),
    ],
)
def test_what_mindspore_cuts_by_its_strategy_is_read(tmp_path: Path, data, tensor, stretches, dtype, hidden, layers):
    """The strategy is that of `pcl-pangu`'s network, and the one that our own writer makes of the same."""
    values, folder = foreign.parent(dtype, hidden, layers), tmp_path / "a"
    weights = write_before(folder, values, layers)
    run_release(folder, [0], grid(data, tensor, stretches, hidden, layers))
    for name, cut in read_strategy(folder / "strategy_0.ckpt").items():
        if name in weights:
            axes, count = foreign.release_cut(name, data, tensor, stretches)
            step = tensor if count > 1 else 1
            assert cut == Cut((data, tensor) if data > 1 else (tensor,), tuple(axes), (), step, count), name
    cut_by_mindspore(folder, weights, data * tensor)
    foreign.assert_values(release_of(folder), values)


# DeepSpeed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "dtype", "zero_stage", "nested"),
    [(1, "float32", 0, False), (1, "float16", 1, True), (2, "float32", 1, True), (2, "float16", 0, False)],
)
def test_what_deepspeed_saves_is_read(tmp_path: Path, ranks: int, dtype: str, zero_stage: int, nested: bool):
    values = foreign.parent(dtype)
    np.savez(tmp_path / "values.npz", **foreign.in_megatron(values))
    sizes = {"num_layers": foreign.LAYERS - 1, "hidden_size": foreign.HIDDEN, "num_attention_heads": foreign.HEADS}
    sizes |= {"max_position_embeddings": foreign.LENGTH, "padded_vocab_size": foreign.WORDS}
    more = {"model_parallel_size": ranks, "fp16": dtype == "float16", "zero_stage": zero_stage, "nested": nested}
    run_peers("save_with_deepspeed", tmp_path, [*range(ranks)], megatron_sizes(**sizes, **more), needed="deepspeed")
    model = open_dense_model(tmp_path / "saved")
    assert (model.layout, model.activation, model.activation_known) == ("deepspeed", "erf", False)
    foreign.assert_values(model, values)
    assert {"optimizer", "global_steps", "mp_world_size", "ds_config"} <= set(model.unused)


# Hugging Face


@pytest.mark.slow
@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize(("shard_bytes", "dtype"), [(1 << 30, "float32"), (12_000, "float32"), (12_000, "float16")])
def test_what_transformers_saves_is_read(tmp_path: Path, form: str, shard_bytes: int, dtype: str):
    values = foreign.parent(dtype)
    np.savez(tmp_path / "values.npz", **foreign.in_huggingface(values))
    config: dict[str, Any] = foreign.huggingface_config()
    del config["architectures"], config["model_type"]
    run_gptpangu(tmp_path, form, shard_bytes, config)
    saved = tmp_path / "saved"
    single = "pytorch_model.bin" if form == "bin" else "model.safetensors"
    if shard_bytes < 1 << 30:
        index = json.loads((saved / f"{single}.index.json").read_text())
        assert len(set(index["weight_map"].values())) > 1
        assert not (saved / single).exists()
    else:
        assert (saved / single).exists()
    model = open_dense_model(saved)
    assert (model.layout, model.heads, model.activation, model.activation_known) == ("huggingface", 8, "erf", True)
    foreign.assert_values(model, values)
    assert sum("causal mask" in reason for reason in model.unused.values()) == 2 * foreign.LAYERS
