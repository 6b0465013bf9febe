"""Small Hugging Face style folders, made without text and without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.tiny import tiny_config
from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.convert.conversion import write_hf_folder
from pangu_sigma.domains import domains_of
from pangu_sigma.rre.table import draw_tables
from pangu_sigma.stored.model import StoredModel, expert_name, weight_shapes
from pangu_sigma.text.sentencepieces import alpha_model, train_english
from pangu_sigma.text.tokenizer import Tokenizer
from pangu_sigma.text.vocabulary import FIRST_BYTE, FIRST_ENGLISH


def drawn_model(folder: Path) -> StoredModel:
    """A small model with weights from N(0, 1) and a tokenizer, which is written into `folder`."""
    config = tiny_config(Path("data"), model={"hidden": 4, "ffn": 4})
    rows = np.array([*range(config.model.slot_rows - 256), *range(FIRST_BYTE, FIRST_ENGLISH)])
    english = train_english(["the cat sees a dog and likes the small old house"] * 40, 270)
    tokenizer = Tokenizer(alpha_model(), english, np.tile(rows.astype(np.int32), (config.slots, 1)))
    tokenizer.save(folder / "tokenizer")
    draw, sizes = np.random.default_rng(0), config.model
    shapes = weight_shapes(config).items()
    tensors = {name: LazyArray.of(draw.standard_normal(shape, np.float32), name) for name, shape in shapes}
    counts = (sizes.rre_layers, len(config.domains), tokenizer.size, sizes.experts_per_domain)
    table = draw_tables(config.routing, *counts, None)
    model = StoredModel(folder)
    model.config, model.tokenizer, model.table, model.tensors, model.step = config, tokenizer, table, tensors, 0
    return model


def small_hf_folder(output: Path) -> Path:
    """A folder of the tiny configuration in three files or more."""
    return write_hf_folder(drawn_model(output.with_name("model")), output, 20_000)


def overflowing_hf_folder(output: Path, domain: str) -> Path:
    """The folder of a model that computes infinity in the first RRE layer of a domain, with weights that are all finite."""
    model = drawn_model(output.with_name("model"))
    known = domains_of(model.config).named(domain)
    for number in range(known.first_expert, known.first_expert + known.experts):
        for name in ("w1", "b1", "w2"):
            tensor = expert_name(model.config.model, 0, number, name)
            shape = model.tensors[tensor].shape
            model.tensors[tensor] = LazyArray.of(np.full(shape, 1e38, np.float32), tensor)
    return write_hf_folder(model, output)
