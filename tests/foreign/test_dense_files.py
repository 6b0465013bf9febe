"""What is refused: one message that names the tensor or the file, and what to do."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import foreign_files as foreign
from helpers.fuzzing import watched

from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.dense_files import LAYOUTS, open_dense_model

VALUES = foreign.parent()
MS, MG, HF = (make(VALUES) for make in (foreign.in_mindspore, foreign.in_megatron, foreign.in_huggingface))
FIX = r"download|take|give|save|convert|put|move|correct|leave it out|not of one model|another model|cannot be|computed here"
"""What a message ends with: something to do, or that these files will not do."""


Make = Callable[[Path], Path]
"""Makes a case in an empty folder, and says where it is."""
Change = Callable[[Path], Any]
"""Changes a folder that was valid."""


def without(tensors: dict, *names: str) -> dict:
    return {name: value for name, value in tensors.items() if name not in names}


def ckpt(tensors: dict, change: Callable[[bytes], bytes] = lambda c: c) -> Make:
    return written("a.ckpt", lambda: change(foreign.ckpt(tensors)))


def pt(value: Any) -> Make:
    return written("a.pt", lambda: foreign.torch_zip(value))


def megatron_pt(tensors: dict, **more: Any) -> Make:
    return pt({"args": foreign.arguments(1), **more, "model": foreign.nested(tensors)})


def written(name: str, content: Callable[[], bytes]) -> Make:
    return lambda here: (here / name).write_bytes(content()) and here / name


def changed(make: Make, change: Change) -> Make:
    def both(here: Path) -> Path:
        folder = make(here)
        change(folder)
        return folder

    return both


def release(change: Change) -> Make:
    return changed(lambda here: foreign.write_release(here / "a", VALUES, 1, 4), change)


def megatron(change: Change) -> Make:
    return changed(lambda here: foreign.write_megatron(here / "a", VALUES, 2), change)


def deepspeed(change: Change) -> Make:
    return changed(lambda here: foreign.write_deepspeed(here / "a", VALUES, 2), change)


def huggingface(tensors: dict = HF, form: str = "safetensors", change: Change = lambda f: None, **config: Any) -> Make:
    def made(here: Path) -> Path:
        folder = foreign.write_huggingface(here / "a", tensors, form)
        (folder / "config.json").write_text(json.dumps(foreign.huggingface_config(**config)))
        return folder

    return changed(made, change)


def indexed(change: Callable[[dict], Any], form: str = "bin-index") -> Make:
    def edit(folder: Path) -> None:
        (file,) = folder.glob("*.index.json")
        tree = json.loads(file.read_text())
        change(tree["weight_map"])
        file.write_text(json.dumps(tree))

    return huggingface(form=form, change=edit)


def in_index(name: str, file: Any, form: str = "bin-index") -> Make:
    return indexed(lambda files: files.update({name: file}), form)


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def content(name: str, make: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / name).write_bytes(make((folder / name).read_bytes()))


def touch(name: str) -> Change:
    return lambda folder: (folder / name).touch()


def unlink(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def rename(name: str, other: str) -> Change:
    return lambda folder: (folder / name).rename(folder / other)


class _System:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def twice(value: np.ndarray) -> np.ndarray:
    return np.concatenate([value, value])


LAST = "language_model.transformer.final_layernorm.weight"
INNER = "language_model.transformer.layers.1.attention.dense.weight"
FUSED = "language_model.transformer.layers.0.attention.query_key_value.weight"
BLOCK, OF_BLOCK = "backbone.blocks.1.output.mapping.weight", r"backbone\.blocks\.1\.output\.mapping\.weight"
QUERY, BIAS = "transformer.wqe.weight", "transformer.ln_f.bias"
GAIN, STEP = VALUES["norm.gain"], "iter_0000007"
RANK, TRACKER = f"{STEP}/mp_rank_01/model_optim_rng.pt", "latest_checkpointed_iteration.txt"
NO_NAME, NO_STEP = "not a name in this folder", "must have the number of a step"

REFUSED: dict[str, tuple[Make, str]] = {
    # nothing that is known
    "nothing there": (lambda h: h / "nothing", "does not exist"),
    "an empty folder": (lambda h: h, "an empty folder"),
    "a folder of pictures": (lambda h: [(h / f"{i}.png").touch() for i in range(9)] and h, "0.png, .* and 4 more"),
    "a file of another kind": (written("a.txt", lambda: b"a"), r"ends in \.txt"),
    "prepared data": (
        changed(lambda h: (h / "zh").mkdir() or (h / "tokenizer").mkdir() or h, touch("zh/manifest.json")),
        "is in no layout that is read: prepared data; give",
    ),
    # MindSpore, one file
    "ms: a tensor is missing": (ckpt(without(MS, BLOCK)), f"{OF_BLOCK} is missing"),
    "ms: a tensor too many": (ckpt({**MS, "backbone.extra": GAIN}), r"backbone\.extra is no tensor"),
    "ms: a wrong shape": (ckpt({**MS, BLOCK: MS[BLOCK][:, :9]}), f"{OF_BLOCK} is of shape"),
    "ms: not a matrix": (ckpt({**MS, BLOCK: MS[BLOCK][0]}), rf"{OF_BLOCK} is of shape \(64,\)"),
    "ms: a flipped header": (ckpt(MS, lambda c: bytes([c[0] ^ 64]) + c[1:]), "at byte 0"),
    "ms: a wrong type": (
        ckpt({**MS, BLOCK: MS[BLOCK].astype(np.int32)}),
        rf"{OF_BLOCK} \(layers\.1\.ffn\.w1\) is Int32",
    ),
    "ms: a layer is left out": (
        ckpt({n.replace("blocks.1.", "blocks.999999999999."): v for n, v in MS.items()}),
        "none of index 1",
    ),
    "ms: no layer": (ckpt({n: v for n, v in MS.items() if "top_query" not in n and ".blocks." not in n}), "missing"),
    "ms: two files": (lambda h: ckpt(MS)(h).with_name("b.ckpt").touch() or h, "2 checkpoint files without a strategy"),
    "ms: two names of one table": (ckpt({**MS, "embedding_table": VALUES["embedding"]}), "are both embedding"),
    # MindSpore, the release
    "ms: no strategy": (release(unlink("pangu_strategy.ckpt")), "0 strategy files"),
    "ms: two strategies": (release(touch("strategy2.ckpt")), "2 strategy files"),
    "ms: a rank is missing": (release(unlink("filerted_2.ckpt")), r"filerted_2\.ckpt is missing"),
    "ms: the last rank is missing": (release(unlink("filerted_3.ckpt")), "3 files of ranks, .* is for 4"),
    "ms: a rank twice": (release(touch("filtered_2.ckpt")), "are of one rank"),
    "ms: a file that does not belong": (release(touch("b.ckpt")), r"b\.ckpt is beside"),
    "ms: a rank of another model": (
        release(content("filerted_1.ckpt", lambda c: foreign.ckpt(MS))),
        r"is in only one of filerted_0\.ckpt and filerted_1\.ckpt",
    ),
    "ms: no npy": (release(unlink("top_query_embedding.npy")), r"top_query_embedding\.npy is missing"),
    "ms: an npy of another hidden size": (
        release(lambda f: np.save(f / "position_embedding.npy", np.zeros((6, 9), np.float32))),
        r"position_embedding\.npy is of shape \(6, 9\)",
    ),
    # Megatron
    "mt: a tensor is missing": (megatron_pt(without(MG, INNER)), rf"{re.escape(INNER)} is missing"),
    "mt: a tensor too many": (megatron_pt({**MG, "language_model.pooler.dense.weight": GAIN}), "pooler.* is no tensor"),
    "mt: a fused query, key and value": (
        megatron_pt({**MG, FUSED: GAIN}),
        "query_key_value.weight is no tensor of PanGu-α",
    ),
    "mt: another layer count": (
        megatron_pt(MG, args=foreign.arguments(1, num_layers=7)),
        r"layers=3, args\.num_layers \+ 1, the query layer, says 8",
    ),
    "mt: heads that do not divide": (
        megatron_pt(MG, args=foreign.arguments(1, num_attention_heads=3)),
        "3 heads do not divide",
    ),
    "mt: one file of two ranks": (lambda h: megatron(lambda f: None)(h) / RANK, r"args\.model_parallel_size is 2"),
    "mt: a rank is missing": (megatron(unlink(RANK)), r"mp_rank_01/model_optim_rng\.pt is missing"),
    "mt: the first rank is missing": (
        megatron(rename(f"{STEP}/mp_rank_00", f"{STEP}/mp_rank_02")),
        "mp_rank_00 is missing",
    ),
    "mt: pipeline stages": (
        megatron(rename(f"{STEP}/mp_rank_01", f"{STEP}/mp_rank_01_000")),
        "mp_rank_01_000 is not of a tensor rank alone",
    ),
    "mt: ranks of two models": (
        megatron(content(RANK, lambda c: foreign.torch_zip({"model": foreign.nested(without(MG, LAST))}))),
        r"is of shape|is in only one of",
    ),
    "mt: a tracker that leads out": (megatron(text(TRACKER, "../../etc")), NO_STEP),
    "mt: a tracker of another step": (megatron(text(TRACKER, "9")), "iter_0000009, which is not there"),
    "mt: no weights": (pt({"a": 1}), "no weights under `model`"),
    "mt: a number among the weights": (
        pt({"model": {"language_model": {"x": 3}}}),
        r"language_model\.x is a int, and no tensor",
    ),
    "mt: a state of NumPy among the weights": (
        pt({"model": {"x": np.zeros(2)}}),
        r"x is a numpy.*\._reconstruct, which is not built",
    ),
    # DeepSpeed
    "ds: a tag that leads out": (deepspeed(text("latest", "../a")), NO_NAME),
    "ds: a tag that is not there": (deepspeed(text("latest", "b")), "b, which is not there"),
    "ds: a rank is missing": (deepspeed(unlink("global_step7/mp_rank_00_model_states.pt")), "mp_rank_00 is missing"),
    "ds: weights that are elsewhere": (pt({"module": None}), "no weights under `model`"),
    # Hugging Face
    "hf: a tensor is missing": (huggingface(without(HF, "transformer.h.1.ln_2.bias")), r"h\.1\.ln_2\.bias is missing"),
    "hf: a wrong shape": (huggingface({**HF, QUERY: twice(HF[QUERY])}), r"wqe\.weight is of shape \(12, 16\)"),
    "hf: a wrong type": (huggingface({**HF, BIAS: np.zeros(16)}), r"ln_f\.bias \(norm\.bias\) is F64"),
    "hf: another layer count": (huggingface(num_layers=5), "num_layers says 5"),
    "hf: another model": (huggingface(model_type="gpt2"), "model_type is 'gpt2'"),
    "hf: another activation": (huggingface(activation_function="relu"), "activation_function is 'relu'"),
    "hf: scores that are not scaled": (huggingface(scale_attn_weights=False), "scale_attn_weights is False"),
    "hf: heads that do not divide": (huggingface(num_heads=7), "7 heads do not divide"),
    "hf: a head of another shape": (
        huggingface({**HF, "lm_head.weight": np.zeros((3, 16), np.float32)}),
        r"lm_head\.weight is of shape \(3, 16\)",
    ),
    "hf: a size that is NaN": (huggingface(hidden_size=float("nan")), "hidden_size is nan"),
    "hf: JSON that is a list": (huggingface(change=text("config.json", "[]")), "it holds a list"),
    "hf: an empty index": (indexed(lambda files: files.clear()), "it has no weight_map"),
    "hf: no JSON": (huggingface(change=text("config.json", "{")), "it is not JSON"),
    "hf: a path in the index": (in_index(BIAS, "../b/pytorch_model-0.bin"), NO_NAME),
    "hf: a file of another kind in the index": (in_index(BIAS, "config.json"), r"config\.json: weights are read from"),
    "hf: a file that is missing": (
        huggingface(form="bin-index", change=unlink("pytorch_model-1.bin")),
        r"pytorch_model-1\.bin, which is not there",
    ),
    "hf: a tensor in two files": (
        huggingface(
            form="bin-index", change=lambda f: shutil.copyfile(f / "pytorch_model-0.bin", f / "pytorch_model-1.bin")
        ),
        r"pytorch_model-1\.bin: .* is in another file, too",
    ),
    "hf: safetensors that are cut short": (
        huggingface(change=content("model.safetensors", lambda c: c[:999])),
        "deserializing header: .*download it again",
    ),
    "hf: code": (
        huggingface(form="bin", change=content("pytorch_model.bin", lambda c: foreign.torch_zip({"a": _System()}))),
        r"asks for posix\.system",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_by_name_with_what_to_do(tmp_path: Path, name: str):
    made, message = REFUSED[name]
    path = made(tmp_path)
    before = sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*"))
    with pytest.raises(LayoutError, match=message) as caught, watched():
        open_dense_model(path)
    text = str(caught.value)
    assert re.search(FIX, text), text
    assert str(tmp_path) in text
    assert "\n" not in text and len(text) < 900
    assert sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*")) == before


def test_a_message_about_no_layout_lists_them_all(tmp_path: Path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(LayoutError) as caught:
            open_dense_model(path)
        assert all(f"{name}: " in str(caught.value) for name in LAYOUTS)


def test_nothing_is_read_before_a_tensor_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A sparse file of a terabyte opens at once."""
    from pangu_sigma.foreign.file_tensors import FileTensor

    def fail(self: FileTensor, *_: int) -> np.ndarray:
        raise AssertionError(f"{self.name} was read")

    monkeypatch.setattr(FileTensor, "read", fail)
    (tmp_path / "r").mkdir()
    paths = [ckpt(MS)(tmp_path), foreign.write_megatron(tmp_path / "m", VALUES, 4), huggingface()(tmp_path)]
    paths.append(release(lambda folder: None)(tmp_path / "r"))
    for path in paths:
        model = open_dense_model(path)
        with pytest.raises(AssertionError, match="was read"):
            model.tensors["norm.gain"].read()
