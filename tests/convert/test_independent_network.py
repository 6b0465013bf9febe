"""Networks that we did not write, `pcl-pangu`'s two in PyTorch, answer as ours when they are fed with our weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import foreign_files as foreign
from helpers.alpha_peers import megatron_sizes, peers_or_skip, run_peers
from helpers.dense_runs import write_dense_run

from experiments.tiny import tiny_tree, write_text
from pangu_sigma.config import Config
from pangu_sigma.config_file import parse_config
from pangu_sigma.data.prepare.prepare import prepare
from pangu_sigma.generate.cpu.exact import ExactModel
from pangu_sigma.stored.open import open_model
from pangu_sigma.text.vocabulary import ALPHA_SIZE

pytestmark = pytest.mark.slow

TEXTS, LENGTH = 4, 32
MOST = 1e-5
"""Largest difference of two logits, over the largest logit."""
STD = 0.3
"""Of the weights, biases and gains: large enough for the largest logit to be about 50, and for the kind of GELU to be seen."""


def config_of(data: Path, activation: str) -> Config:
    tree = tiny_tree(data)
    tree["model"] |= {"hidden": 64, "ffn": 256, "heads": 4, "dense_layers": 4, "rre_layers": 0, "slot_rows": 1024}
    tree["model"]["activation"] = activation
    for domain in tree["domains"]:
        domain["slot"] = "all"
    return parse_config(tree)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Prepared text whose domains share one word table, as PanGu-α has one."""
    peers_or_skip()
    folder = tmp_path_factory.mktemp("text")
    write_text(folder / "text.jsonl")
    prepare(config_of(folder / "prepared", "tanh"), [folder / "text.jsonl"], folder / "prepared")
    return folder / "prepared"


class Ours:
    """A dense run with drawn weights, texts in PanGu-α's ids, and its own logits of them."""

    def __init__(self, data: Path, folder: Path, activation: str):
        self.path = write_dense_run(config_of(data, activation), folder, STD)
        self.run = open_model(self.path, "run")
        ids = self.run.tokenizer.slot_rows[0]
        known = ids[(ids >= 0) & (ids < ALPHA_SIZE) & (ids != self.run.tokenizer.eot)]
        self.texts = np.random.default_rng(0).choice(known, (TEXTS, LENGTH)).astype(np.int64)
        self.ids = ids[(ids >= 0) & (ids < ALPHA_SIZE)]
        self.rows = self.run.tokenizer.row_of[0][self.ids]

    def exact(self, activation: str) -> np.ndarray:
        weights = self.run
        model = ExactModel(self.run.config.model, weights, activation)
        routes, row_of = np.zeros((0, LENGTH), int), self.run.tokenizer.row_of[0]
        return np.stack([model.logits(row_of[text], routes, self.rows) for text in self.texts])

    def write(self, folder: Path, ranks: int) -> Path:
        """Files of Megatron, in whose word table the row of a token is its id; rows that we do not have are zeros."""
        values = {name: each.read() for name, each in self.run.tensors.items()}
        sizes = self.named(ranks)
        words = np.zeros((sizes["padded_vocab_size"], sizes["hidden_size"]), np.float32)
        words[self.ids] = values["embedding"][self.rows]
        tanh = self.run.config.model.activation == "tanh"
        more = {"make_vocab_size_divisible_by": 128, "tokenizer_type": "GPT2BPETokenizer", "openai_gelu": tanh}
        more |= {"seq_length": sizes["max_position_embeddings"]}
        foreign.write_megatron(folder, values | {"embedding": words}, ranks, step=1, **sizes, **more)
        np.save(folder / "texts.npy", self.texts)
        return folder

    def theirs(self, logits: np.ndarray) -> np.ndarray:
        """Their logits in the order of ours. Every id that has no row here has the logit 0."""
        assert np.isfinite(logits).all(), "their loader has passed over a tensor"
        assert not np.delete(logits, self.ids, axis=-1).any()
        return logits[..., self.ids]

    def named(self, ranks: int) -> dict[str, int]:
        """Sizes by Megatron's names."""
        model, multiple = self.run.config.model, 128 * ranks
        sizes = {"num_layers": model.layers - 1, "hidden_size": model.hidden, "num_attention_heads": model.heads}
        sizes |= {"padded_vocab_size": -(-ALPHA_SIZE // multiple) * multiple, "model_parallel_size": ranks}
        return sizes | {"max_position_embeddings": model.seq_length}

    def sizes(self, ranks: int) -> str:
        return megatron_sizes(**self.named(ranks))


def apart(mine: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(mine - theirs).max() / np.abs(theirs).max())


def agree(what: str, mine: np.ndarray, theirs: np.ndarray) -> None:
    """They differ by no more than rounding; `pytest -s` shows by how much."""
    print(f"{what}: {apart(mine, theirs):.2e} of {np.abs(theirs).max():.3g}")
    assert apart(mine, theirs) <= MOST, what


@pytest.mark.parametrize(("activation", "other"), [("tanh", "erf"), ("erf", "tanh")])
def test_networks_of_others_answer_as_ours(data, tmp_path, activation, other):
    ours = Ours(data, tmp_path / "run", activation)
    folder = ours.write(tmp_path / "alpha", 1)
    run_peers("answer", folder, [1], ours.sizes(1))
    megatron, onnx = (ours.theirs(np.load(folder / f"{name}.npy")) for name in ("megatron", "onnx"))
    agree(f"{activation}, exact and Megatron", ours.exact(activation), megatron)
    agree(f"{activation} in the files, exact with tanh and ONNX's, which has no other", ours.exact("tanh"), onnx)
    assert apart(ours.exact(other), megatron) > 5 * MOST, "another GELU would not be noticed"


def test_they_do_so_from_files_of_two_tensor_ranks(data, tmp_path):
    ours = Ours(data, tmp_path / "run", "tanh")
    folder = ours.write(tmp_path / "alpha", 2)
    run_peers("answer", folder, [2], ours.sizes(2))
    run_peers("answer_as_rank", folder, [0, 1], ours.sizes(2))
    exact = ours.exact("tanh")
    for name in ("megatron", "onnx"):
        agree(f"two ranks joined, {name}", exact, ours.theirs(np.load(folder / f"{name}.npy")))
    logits = np.concatenate([np.load(folder / f"megatron_{rank}.npy") for rank in range(2)], axis=-1)
    agree("two ranks as two processes", exact, ours.theirs(logits[..., :ALPHA_SIZE]))
