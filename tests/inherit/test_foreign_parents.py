"""Parents that others wrote, from their files to the step 0 of a sparse run; and one of 13 billion parameters, headers only."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import foreign_files as foreign
from helpers.dense_runs import write_dense_run

from experiments.tiny import tiny_config
from pangu_sigma.cli import main
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.errors import LayoutError
from pangu_sigma.inherit.from_alpha import inherit
from pangu_sigma.inherit.parent import open_parent
from pangu_sigma.inherit.receipt import Receipt
from pangu_sigma.stored.open import open_model

SIZES = {"hidden": foreign.HIDDEN, "ffn": 4 * foreign.HIDDEN, "heads": foreign.HEADS, "seq_length": foreign.LENGTH}
ALPHA_WORDS = 40_000

pytestmark = pytest.mark.usefixtures("graph_mode")


def child_of(data: Path, **model) -> Config:
    return tiny_config(data, model=SIZES | model)


def inherited(path: Path, data: Path, run: Path) -> Receipt:
    return inherit(open_parent(path, heads=foreign.HEADS, activation="tanh"), child_of(data, activation="tanh"), run)


LAYOUTS = {
    "megatron, 1 rank": lambda folder, values: foreign.write_megatron(folder, values),
    "megatron, 4 ranks": lambda folder, values: foreign.write_megatron(folder, values, 4),
    "megatron, 8 ranks": lambda folder, values: foreign.write_megatron(folder, values, 8),
    "deepspeed, 4 ranks": lambda folder, values: foreign.write_deepspeed(folder, values, 4),
    "mindspore, 8 files": lambda folder, values: foreign.write_release(folder, values, 2, 4, 2),
}


@pytest.fixture(scope="module")
def hashes() -> dict[str, str]:
    """Hash of the parent in each layout that was read so far."""
    return {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_parent_in_any_layout_has_one_child_which_answers_as_it_does(
    layout, tiny_data, tmp_path, monkeypatch, hashes
):
    values = foreign.parent(words=ALPHA_WORDS)
    monkeypatch.setattr(foreign, "WORDS", ALPHA_WORDS)
    monkeypatch.setattr(foreign, "arguments", _arguments(foreign.arguments))
    receipt = inherited(LAYOUTS[layout](tmp_path / "parent", values), tiny_data, tmp_path / "run")
    assert {name: agreement.exact for name, agreement in receipt.agreement.items()} == {
        "zh": 0.0,
        "en": 0.0,
        "code": 0.0,
    }
    assert receipt.parent_step is None
    assert sum(receipt.parameters.values()) == child_of(tiny_data).num_params().total
    assert [slot.parent_slot for slot in receipt.slots] == ["alpha", "alpha"]
    assert receipt.slots[1].new > 0, "English pieces that PanGu-α does not have"
    hashes[layout] = receipt.parent_hash
    assert len(set(hashes.values())) == 1, "they are one model"


def _arguments(written):
    """Arguments as Megatron saves them, with the GELU that is asked for and the whole vocabulary."""

    def arguments(*given):
        namespace = written(*given)
        for key in ("activation", "onnx_safe", "openai_gelu"):
            if hasattr(namespace, key):
                delattr(namespace, key)
        return namespace

    return arguments


@pytest.fixture(scope="module")
def huggingface(tmp_path_factory) -> Path:
    """A parent in a zip file of torch, whose config.json says 8 heads and erf."""
    folder = tmp_path_factory.mktemp("huggingface") / "a"
    foreign.write_huggingface(folder, foreign.in_huggingface(foreign.parent(words=ALPHA_WORDS)), "bin")
    (folder / "config.json").write_text(json.dumps(foreign.huggingface_config(vocab_size=ALPHA_WORDS)))
    return folder


def test_the_parents_gelu_is_taken_unless_another_is_asked_for(huggingface, tiny_data, tmp_path):
    receipt = inherit(open_parent(huggingface), child_of(tiny_data), tmp_path / "run")
    assert open_model(tmp_path / "run", "run").config.model.activation == receipt.activation == "erf"
    assert {agreement.own_activation for agreement in receipt.agreement.values()} == {None}
    assert re.search(r"GELU +erf, the parent's\n", repr(receipt))


def test_another_gelu_that_is_asked_for_is_told_first_and_counted_in_nats(huggingface, tiny_data, tmp_path, caplog):
    receipt = inherit(open_parent(huggingface), child_of(tiny_data, activation="fast_gelu"), tmp_path / "run")
    assert (receipt.activation, receipt.parent_activation) == ("fast_gelu", "erf")
    assert "model.activation=fast_gelu is asked for, the parent computes erf" in caplog.text
    for agreement in receipt.agreement.values():
        assert agreement.exact == 0.0
        assert agreement.own_activation is not None
        assert agreement.own_activation > 1e-4
        assert agreement.activation_nats is not None
        assert abs(agreement.activation_nats) > 1e-6
        assert f"largest |Δlogit| {agreement.own_activation:.2g} with fast_gelu, which costs" in repr(receipt)


def test_heads_or_activation_against_what_the_files_say_are_refused(huggingface, tiny_data, tmp_path):
    """In others' files and in a run; what agrees is taken."""
    dense = {"dense_layers": 3, "rre_layers": 0}
    run = write_dense_run(tiny_config(tiny_data, model=dense), tmp_path / "dense")
    with pytest.raises(ConfigError, match=r"heads 4: .* says 8; leave the option out"):
        open_parent(huggingface, heads=4)
    with pytest.raises(ConfigError, match=r"heads 8: .*dense says 2; leave the option out"):
        open_parent(run, heads=8)
    with pytest.raises(ConfigError, match=r"activation erf: .*dense says fast_gelu"):
        open_parent(run, activation="erf")
    assert open_parent(run, heads=2, activation="fast_gelu").sizes.heads == 2


def test_a_damaged_entry_of_a_torch_file_is_named_and_leaves_nothing(huggingface, tiny_data, tmp_path):
    copy = shutil.copytree(huggingface, tmp_path / "copy")
    content = bytearray((copy / "pytorch_model.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(LayoutError, match=r"pytorch_model\.bin: its member archive/data/\d+ has the CRC32"):
        inherit(open_parent(copy), child_of(tiny_data), tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_tokens_of_a_released_alpha_without_a_row_are_counted_and_the_same_texts_compared(
    tiny_data, tmp_path, monkeypatch
):
    monkeypatch.setattr(foreign, "LENGTH", 64)
    values = foreign.in_mindspore(foreign.parent(words=ALPHA_WORDS))
    (tmp_path / "a.ckpt").write_bytes(foreign.ckpt(values))
    receipt = inherit(open_parent(tmp_path / "a.ckpt", 8), child_of(tiny_data, seq_length=64), tmp_path / "run")
    zh, en = receipt.slots
    assert zh.lost == ALPHA_WORDS - zh.copied
    assert en.lost == 0, "PanGu-α reads no English pieces"
    for agreement in receipt.agreement.values():
        assert agreement.text in tiny_text(tiny_data), "a text as it was written, nothing left out"
        assert agreement.texts > 5
    english = receipt.agreement["en"]
    assert english.other == english.texts, "PanGu-α cuts English by its own pieces"
    assert f"{english.other} of {english.texts} samples of held-out text are cut into other tokens" in repr(receipt)


def tiny_text(data: Path) -> str:
    lines = (data.parent / "text.jsonl").read_text(encoding="utf-8").splitlines()
    return "\n".join(json.loads(line)["text"] for line in lines)


def test_another_vocabulary_or_number_of_heads_is_refused_and_leaves_nothing(tiny_data, tmp_path):
    folder = foreign.write_release(tmp_path / "parent", foreign.parent(), 1, 1)
    with pytest.raises(ConfigError, match=r"40 rows.*40000"):
        inherited(folder, tiny_data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def write_headers(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A checkpoint of MindSpore in float16 whose values are holes."""

    def number(value: int) -> bytes:
        encoded = b""
        while value > 127:
            encoded, value = encoded + bytes([value & 127 | 128]), value >> 7
        return encoded + bytes([value])

    with open(file, "wb") as stream:
        for name, shape in shapes.items():
            size = 2 * int(np.prod(shape))
            dims = b"".join(b"\x08" + number(length) for length in shape)
            before = dims + b"\x12\x07Float16" + b"\x1a" + number(size)
            tensor = b"\x12" + number(len(before) + size) + before
            value = b"\x0a" + number(len(name)) + name.encode() + tensor
            stream.write(b"\x0a" + number(len(value) + size) + value)
            stream.seek(size, os.SEEK_CUR)
        stream.truncate()


def test_a_sparse_folder_of_13b_is_mapped_onto_sigma_1t_in_seconds(tmp_path, capsys):
    """512 files of PanGu-α 13B cut for 8 tensor ranks, every tensor of its shape and no value on the disk."""
    hidden, layers, tensor = 5120, 40, 8
    shapes: dict[str, tuple[int, ...]] = {}
    cuts = {}
    for theirs, _, ours, flip, _ in foreign.names(layers):
        if "_embedding" in theirs:
            continue
        whole = _whole_shape(ours, hidden)
        whole = whole[::-1] if flip else whole
        cuts[theirs] = foreign.release_cut(theirs, 64, tensor, 1)
        axes = cuts[theirs][0]
        shapes[theirs] = tuple(n // tensor if axis == 0 else n for n, axis in zip(whole, axes, strict=True))
    for rank in range(512):
        file = tmp_path / f"filerted_{rank}.ckpt"
        if rank < tensor:
            write_headers(file, shapes)
        else:
            os.link(tmp_path / f"filerted_{rank % tensor}.ckpt", file)
    (tmp_path / "strategy.ckpt").write_bytes(foreign.strategy(cuts, shapes, [64, tensor]))
    for name, rows in (("word", ALPHA_WORDS), ("position", 1024), ("top_query", 1024)):
        np.lib.format.open_memmap(tmp_path / f"{name}_embedding.npy", "w+", np.float32, (rows, hidden)).flush()
    begun = time.monotonic()
    assert main(["inherit", str(tmp_path), "sigma_1t", "--dry-run", "--set", "data.path=/nowhere"]) == 0
    seconds = time.monotonic() - begun
    printed = capsys.readouterr().out
    print(f"{printed}\n{seconds:.1f} s")
    assert "ffn.experts.*.w1" in printed
    assert "(640, 20480, 5120)" in printed
    assert "32 … 39" in printed
    assert "which rows are copied is known when text is prepared" in printed


def _whole_shape(ours: str, hidden: int) -> tuple[int, ...]:
    name = ours.rpartition("layers.")[2].partition(".")[2] if ours.startswith("layers.") else ours
    if name in ("ffn.w1", "ffn.w2"):
        return 4 * hidden, hidden
    if name == "ffn.b1":
        return (4 * hidden,)
    return (hidden, hidden) if name.endswith("weight") else (hidden,)
