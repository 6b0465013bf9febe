"""What is refused: one message that names the tensor or the file, and what to do."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import foreign_files as foreign
from helpers.foreign_files import FakeTensor
from helpers.fuzzing import watched
from safetensors.numpy import save_file

from pangu_sigma.foreign.dense_files import LAYOUTS, open_dense_model
from pangu_sigma.foreign.dense_model import LayoutError

VALUES = foreign.parent()
MS, MG, HF = (make(VALUES) for make in (foreign.in_mindspore, foreign.in_megatron, foreign.in_huggingface))
FIX = r"download|take|give|save|convert|put|move|correct|leave it out|not of one model|another model|cannot be|computed here"
"""What a message ends with: something to do, or that these files will not do."""


def without(tensors: dict, *names: str) -> dict:
    return {name: value for name, value in tensors.items() if name not in names}


def one_ckpt(here: Path, tensors: dict, change: Callable[[bytes], bytes] = lambda c: c) -> Path:
    (here / "a.ckpt").write_bytes(change(foreign.ckpt(tensors)))
    return here / "a.ckpt"


def release(here: Path, change: Callable[[Path], Any]) -> Path:
    folder = foreign.write_release(here / "a", VALUES, 1, 4)
    change(folder)
    return folder


def megatron(here: Path, change: Callable[[Path], Any], ranks: int = 2) -> Path:
    folder = foreign.write_megatron(here / "a", VALUES, ranks)
    change(folder)
    return folder


def one_pt(here: Path, tensors: Any, **more: Any) -> Path:
    value = {
        "args": foreign.arguments(1),
        **more,
        "model": tensors if isinstance(tensors, str) else foreign.nested(tensors),
    }
    (here / "a.pt").write_bytes(foreign.torch_zip(value))
    return here / "a.pt"


def deepspeed(here: Path, change: Callable[[Path], Any]) -> Path:
    folder = foreign.write_deepspeed(here / "a", VALUES, 2)
    change(folder)
    return folder


def huggingface(here: Path, tensors: dict, form: str = "safetensors", **config: Any) -> Path:
    folder = foreign.write_huggingface(here / "a", tensors, form)
    (folder / "config.json").write_text(json.dumps(foreign.huggingface_config(**config)))
    return folder


def indexed(here: Path, change: Callable[[dict], Any], form: str = "bin-index") -> Path:
    folder = huggingface(here, HF, form)
    (file,) = folder.glob("*.index.json")
    tree = json.loads(file.read_text())
    change(tree["weight_map"])
    file.write_text(json.dumps(tree))
    return folder


def rank(folder: Path, number: int) -> Path:
    return folder / "iter_0000007" / f"mp_rank_{number:02d}" / "model_optim_rng.pt"


def tracker(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "latest_checkpointed_iteration.txt").write_text(text)


class _System:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def other(value: np.ndarray) -> np.ndarray:
    return np.concatenate([value, value])


WORDS, LAST = "language_model.embedding.word_embeddings.weight", "language_model.transformer.final_layernorm.weight"
INNER = "language_model.transformer.layers.1.attention.dense.weight"
BLOCK = "backbone.blocks.1.output.mapping.weight"

REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    # nothing that is known
    "nothing there": (lambda h: h / "nothing", "does not exist"),
    "an empty folder": (lambda h: h, "an empty folder"),
    "a folder of pictures": (lambda h: [(h / f"{i}.png").touch() for i in range(9)] and h, "0.png, .* and 4 more"),
    "a file of another kind": (lambda h: (h / "a.txt").touch() or h / "a.txt", r"ends in \.txt"),
    # MindSpore, one file
    "ms: a tensor is missing": (lambda h: one_ckpt(h, without(MS, BLOCK)), re.escape(BLOCK) + " is missing"),
    "ms: a table is missing": (
        lambda h: one_ckpt(h, without(MS, "backbone.word_embedding.embedding_table")),
        r"word_embedding\.npy is missing",
    ),
    "ms: a tensor too many": (
        lambda h: one_ckpt(h, {**MS, "backbone.extra": VALUES["norm.gain"]}),
        r"backbone\.extra is no tensor",
    ),
    "ms: a wrong shape": (lambda h: one_ckpt(h, {**MS, BLOCK: MS[BLOCK][:, :9]}), re.escape(BLOCK) + r" is of shape"),
    "ms: not a matrix": (
        lambda h: one_ckpt(h, {**MS, BLOCK: MS[BLOCK][0]}),
        re.escape(BLOCK) + r" is of shape \(64,\)",
    ),
    "ms: a wrong type": (
        lambda h: one_ckpt(h, {**MS, BLOCK: MS[BLOCK].astype(np.int32)}),
        re.escape(BLOCK) + " is Int32",
    ),
    "ms: a layer is left out": (
        lambda h: one_ckpt(h, {n.replace("blocks.1.", "blocks.5."): v for n, v in MS.items()}),
        "none of index 1",
    ),
    "ms: no layer": (
        lambda h: one_ckpt(h, {n: v for n, v in MS.items() if "top_query" not in n and ".blocks." not in n}),
        "missing",
    ),
    "ms: cut short": (lambda h: one_ckpt(h, MS, lambda c: c[:-5]), "at byte"),
    "ms: a flipped header": (lambda h: one_ckpt(h, MS, lambda c: bytes([c[0] ^ 64]) + c[1:]), "at byte 0"),
    "ms: a flipped shape": (
        lambda h: one_ckpt(h, MS, lambda c: c.replace(b"\x08\x10\x08\x40", b"\x08\x10\x08\x41")),
        "bytes",
    ),
    "ms: two files": (
        lambda h: (one_ckpt(h, MS) and (h / "b.ckpt").touch()) or h,
        "2 checkpoint files without a strategy",
    ),
    "ms: two names of one table": (
        lambda h: one_ckpt(h, {**MS, "embedding_table": VALUES["embedding"]}),
        "are both embedding",
    ),
    # MindSpore, the release
    "ms: no strategy": (lambda h: release(h, lambda f: (f / "pangu_strategy.ckpt").unlink()), "0 strategy files"),
    "ms: two strategies": (lambda h: release(h, lambda f: (f / "strategy2.ckpt").touch()), "2 strategy files"),
    "ms: a rank is missing": (
        lambda h: release(h, lambda f: (f / "filerted_2.ckpt").unlink()),
        r"filerted_2\.ckpt is missing",
    ),
    "ms: the last rank is missing": (
        lambda h: release(h, lambda f: (f / "filerted_3.ckpt").unlink()),
        "3 files of ranks, .* is for 4",
    ),
    "ms: a rank twice": (lambda h: release(h, lambda f: (f / "filtered_2.ckpt").touch()), "are of one rank"),
    "ms: a file that does not belong": (lambda h: release(h, lambda f: (f / "b.ckpt").touch()), r"b\.ckpt is beside"),
    "ms: a rank is empty": (
        lambda h: release(h, lambda f: (f / "filerted_1.ckpt").write_bytes(b"")),
        r"filerted_1\.ckpt: it is empty",
    ),
    "ms: a rank of another model": (
        lambda h: release(h, lambda f: (f / "filerted_1.ckpt").write_bytes(foreign.ckpt(MS))),
        r"is in only one of filerted_0\.ckpt and filerted_1\.ckpt",
    ),
    "ms: no npy": (
        lambda h: release(h, lambda f: (f / "top_query_embedding.npy").unlink()),
        r"top_query_embedding\.npy is missing",
    ),
    "ms: an npy of objects": (
        lambda h: release(h, lambda f: np.save(f / "word_embedding.npy", np.array([_System()]), allow_pickle=True)),
        r"word_embedding\.npy: .*Python objects",
    ),
    "ms: an npy of another hidden size": (
        lambda h: release(h, lambda f: np.save(f / "position_embedding.npy", np.zeros((6, 9), np.float32))),
        r"position_embedding\.npy is of shape \(6, 9\)",
    ),
    # Megatron
    "mt: a tensor is missing": (lambda h: one_pt(h, without(MG, INNER)), re.escape(INNER) + " is missing"),
    "mt: a tensor too many": (
        lambda h: one_pt(h, {**MG, "language_model.pooler.dense.weight": VALUES["norm.gain"]}),
        "pooler.* is no tensor",
    ),
    "mt: a fused query, key and value": (
        lambda h: one_pt(
            h, {**MG, "language_model.transformer.layers.0.attention.query_key_value.weight": VALUES["norm.gain"]}
        ),
        "query_key_value.weight is no tensor of PanGu-α",
    ),
    "mt: a wrong shape": (
        lambda h: one_pt(h, {**MG, LAST: other(MG[LAST])}),
        re.escape(LAST) + r" is of shape \(32,\)",
    ),
    "mt: another layer count": (
        lambda h: one_pt(h, MG, args=foreign.arguments(1, num_layers=7)),
        r"layers=3, args\.num_layers \+ 1, the query layer, says 8",
    ),
    "mt: another hidden size": (
        lambda h: one_pt(h, MG, args=foreign.arguments(1, hidden_size=99)),
        r"args\.hidden_size says 99",
    ),
    "mt: heads that do not divide": (
        lambda h: one_pt(h, MG, args=foreign.arguments(1, num_attention_heads=3)),
        "3 heads do not divide",
    ),
    "mt: one file of two ranks": (lambda h: rank(megatron(h, lambda f: None), 0), r"args\.model_parallel_size is 2"),
    "mt: a rank is missing": (
        lambda h: megatron(h, lambda f: rank(f, 1).unlink()),
        r"mp_rank_01/model_optim_rng\.pt is missing",
    ),
    "mt: the first rank is missing": (
        lambda h: megatron(h, lambda f: rank(f, 0).parent.rename(f / "iter_0000007" / "mp_rank_02")),
        "mp_rank_00 is missing",
    ),
    "mt: pipeline stages": (
        lambda h: megatron(h, lambda f: rank(f, 1).parent.rename(f / "iter_0000007" / "mp_rank_01_000")),
        "mp_rank_01_000 is not of a tensor rank alone",
    ),
    "mt: ranks of two models": (
        lambda h: megatron(
            h, lambda f: rank(f, 1).write_bytes(foreign.torch_zip({"model": foreign.nested(without(MG, LAST))}))
        ),
        r"is of shape|is in only one of",
    ),
    "mt: a tracker that leads out": (lambda h: megatron(h, tracker("../../etc")), "must have the number of a step"),
    "mt: a tracker of no number": (lambda h: megatron(h, tracker("٣")), "must have the number of a step"),
    "mt: a tracker of another step": (lambda h: megatron(h, tracker("9")), "iter_0000009, which is not there"),
    "mt: an empty tracker": (lambda h: megatron(h, tracker("")), "must have the number of a step"),
    "mt: no weights": (
        lambda h: (h / "a.pt").write_bytes(foreign.torch_zip({"a": 1})) and h / "a.pt",
        "no weights under `model`",
    ),
    "mt: a list": (
        lambda h: (h / "a.pt").write_bytes(foreign.torch_zip([1])) and h / "a.pt",
        "no weights under `model`",
    ),
    "mt: a number among the weights": (
        lambda h: (h / "a.pt").write_bytes(foreign.torch_zip({"model": {"language_model": {"x": 3}}})) and h / "a.pt",
        r"language_model\.x is a int, and no tensor",
    ),
    "mt: a state of NumPy among the weights": (
        lambda h: (h / "a.pt").write_bytes(foreign.torch_zip({"model": {"x": np.zeros(2)}})) and h / "a.pt",
        r"x is a numpy.* _reconstruct, which is not built",
    ),
    "mt: code": (lambda h: one_pt(h, MG, optimizer=_System()), r"asks for posix\.system"),
    "mt: code in the arguments": (
        lambda h: one_pt(h, MG, args=foreign.arguments(1, x=[_System()])),
        r"asks for posix\.system",
    ),
    "mt: cut short": (
        lambda h: megatron(h, lambda f: rank(f, 1).write_bytes(rank(f, 1).read_bytes()[:-99])),
        "no file of torch",
    ),
    "mt: a flipped header": (
        lambda h: megatron(h, lambda f: rank(f, 1).write_bytes(b"QK" + rank(f, 1).read_bytes()[2:])),
        "neither a zip file nor a pickle",
    ),
    # DeepSpeed
    "ds: a tag that leads out": (
        lambda h: deepspeed(h, lambda f: (f / "latest").write_text("../a")),
        "no name of a file in this folder",
    ),
    "ds: a tag that is not there": (
        lambda h: deepspeed(h, lambda f: (f / "latest").write_text("b")),
        "b, which is not there",
    ),
    "ds: a rank is missing": (
        lambda h: deepspeed(h, lambda f: (f / "global_step7" / "mp_rank_00_model_states.pt").unlink()),
        "mp_rank_00 is missing",
    ),
    "ds: weights that are elsewhere": (
        lambda h: (h / "a.pt").write_bytes(foreign.torch_zip({"module": None})) and h / "a.pt",
        "no weights under `model`",
    ),
    # Hugging Face
    "hf: a tensor is missing": (
        lambda h: huggingface(h, without(HF, "transformer.h.1.ln_2.bias")),
        r"h\.1\.ln_2\.bias is missing",
    ),
    "hf: no layers": (
        lambda h: huggingface(h, {name: value for name, value in HF.items() if ".h." not in name}),
        r"h\.0\.ln_1\.weight is missing",
    ),
    "hf: a tensor too many": (
        lambda h: huggingface(h, {**HF, "transformer.extra": VALUES["norm.gain"]}),
        "extra is no tensor",
    ),
    "hf: a wrong shape": (
        lambda h: huggingface(h, {**HF, "transformer.wqe.weight": other(HF["transformer.wqe.weight"])}),
        r"wqe\.weight is of shape \(12, 16\)",
    ),
    "hf: a wrong type": (
        lambda h: huggingface(h, {**HF, "transformer.ln_f.bias": np.zeros(16)}),
        r"ln_f\.bias \(norm\.bias\) is F64",
    ),
    "hf: another layer count": (lambda h: huggingface(h, HF, num_layers=5), "num_layers says 5"),
    "hf: another vocabulary": (lambda h: huggingface(h, HF, vocab_size=41), "vocab_size says 41"),
    "hf: another model": (lambda h: huggingface(h, HF, model_type="gpt2"), "model_type is 'gpt2'"),
    "hf: another activation": (
        lambda h: huggingface(h, HF, activation_function="relu"),
        "activation_function is 'relu'",
    ),
    "hf: another LayerNorm": (lambda h: huggingface(h, HF, layer_norm_epsilon=1e-12), "layer_norm_epsilon is 1e-12"),
    "hf: scores that are not scaled": (
        lambda h: huggingface(h, HF, scale_attn_weights=False),
        "scale_attn_weights is off",
    ),
    "hf: a size that is NaN": (lambda h: huggingface(h, HF, hidden_size=float("nan")), "hidden_size is nan"),
    "hf: a size that is a text": (lambda h: huggingface(h, HF, num_heads="8"), "num_heads is 8"),
    "hf: heads that do not divide": (lambda h: huggingface(h, HF, num_heads=7), "7 heads do not divide"),
    "hf: a head of another shape": (
        lambda h: huggingface(h, {**HF, "lm_head.weight": np.zeros((3, 16), np.float32)}),
        r"lm_head\.weight is of shape \(3, 16\)",
    ),
    "hf: no JSON": (lambda h: (huggingface(h, HF) / "config.json").write_text("{") and h / "a", "it is not JSON"),
    "hf: JSON that is deep": (
        lambda h: (huggingface(h, HF) / "config.json").write_text("[" * 99_999) and h / "a",
        "it is not JSON",
    ),
    "hf: JSON that is a list": (
        lambda h: (huggingface(h, HF) / "config.json").write_text("[]") and h / "a",
        "it holds a list",
    ),
    "hf: a path in the index": (
        lambda h: indexed(h, lambda m: m.update({"transformer.ln_f.bias": "../b/pytorch_model-0.bin"})),
        "no name of a file in this folder",
    ),
    "hf: a whole path in the index": (
        lambda h: indexed(h, lambda m: m.update({"transformer.ln_f.bias": "/dev/zero"}), "safetensors-index"),
        "no name of a file in this folder",
    ),
    "hf: a number in the index": (
        lambda h: indexed(h, lambda m: m.update({"transformer.ln_f.bias": 3})),
        "which is not there",
    ),
    "hf: a file of another kind in the index": (
        lambda h: indexed(h, lambda m: m.update({"transformer.ln_f.bias": "config.json"})),
        r"config\.json: weights are read from",
    ),
    "hf: a file that is missing": (
        lambda h: (indexed(h, lambda m: None) / "pytorch_model-1.bin").unlink() or h / "a",
        r"pytorch_model-1\.bin, which is not there",
    ),
    "hf: a tensor that the index lacks": (
        lambda h: indexed(h, lambda m: m.pop("transformer.ln_f.bias")),
        r"ln_f\.bias is in it",
    ),
    "hf: a tensor that no file has": (
        lambda h: indexed(h, lambda m: m.update({"transformer.x": "pytorch_model-0.bin"})),
        r"transformer\.x is not in pytorch_model-0\.bin",
    ),
    "hf: an empty index": (lambda h: indexed(h, lambda m: m.clear()), "it has no weight_map"),
    "hf: safetensors that are cut short": (
        lambda h: os.truncate(huggingface(h, HF) / "model.safetensors", 999) or h / "a",
        "its header of|ends at byte",
    ),
    "hf: code": (
        lambda h: (
            (huggingface(h, HF, "bin") / "pytorch_model.bin").write_bytes(foreign.torch_zip({"a": _System()}))
            and h / "a"
        ),
        r"asks for posix\.system",
    ),
    "hf: a Namespace among the weights": (
        lambda h: (
            (huggingface(h, HF, "bin") / "pytorch_model.bin").write_bytes(
                foreign.torch_zip({"a": FakeTensor(VALUES["norm.gain"]), "b": foreign.arguments(1)})
            )
            and h / "a"
        ),
        "b is a Namespace, and must be a tensor",
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


def test_there_are_at_least_40_refusals_of_every_layout():
    assert len(REFUSED) >= 40
    assert {name.split(":")[0] for name in REFUSED if ":" in name} == {"ms", "mt", "ds", "hf"}


def test_a_file_of_the_format_that_is_gone_is_named_with_the_version_that_reads_it(tmp_path: Path):
    save_file({"embedding": np.zeros(3)}, tmp_path / "x.safetensors", {"config": "name: mine", "xxh3_128": "0" * 32})
    with pytest.raises(
        LayoutError, match=r"`export --format safetensors`, which is gone; version 0\.1\.0 \(commit ab9cf900\)"
    ):
        open_dense_model(tmp_path / "x.safetensors")


def test_a_message_about_no_layout_lists_them_all(tmp_path: Path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(LayoutError) as caught:
            open_dense_model(path)
        assert all(f"{name}: " in str(caught.value) for name in LAYOUTS)


def test_nothing_is_read_before_a_tensor_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A sparse file of a terabyte opens at once."""
    file = one_ckpt(tmp_path, MS)
    from pangu_sigma.foreign.file_tensors import FileTensor

    def fail(self: FileTensor) -> np.ndarray:
        raise AssertionError(f"{self.name} was read")

    monkeypatch.setattr(FileTensor, "values", fail)
    paths = [
        file,
        foreign.write_megatron(tmp_path / "m", VALUES, 4),
        huggingface(tmp_path, HF),
        release(tmp_path / "r", lambda f: None),
    ]
    for path in paths:
        model = open_dense_model(path)
        with pytest.raises(AssertionError, match="was read"):
            model.tensors["norm.gain"].read()


def test_prepared_data_is_told_from_a_model(tmp_path):
    (tmp_path / "frequencies.npy").touch()
    with pytest.raises(LayoutError, match="is in no layout that is read: prepared data; give one of these"):
        open_dense_model(tmp_path)
