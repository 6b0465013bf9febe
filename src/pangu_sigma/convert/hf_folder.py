"""Writer of Hugging Face style folders (read by stored/hf_folder.py)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pangu_sigma.bars import Bar
from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.model_files import TOKENIZER_FOLDER
from pangu_sigma.checkpoint.run_folder import LINEAGE_FILE
from pangu_sigma.checkpoint.safetensors_file import write_arrays
from pangu_sigma.convert.readmes import model_card
from pangu_sigma.sealed import seal_folder, sealed
from pangu_sigma.stored.hf_config import MODEL_TYPE, code_files, config_json, generation_json, tokenizer_config_json
from pangu_sigma.stored.hf_folder import (
    CONFIG_JSON,
    GENERATION_JSON,
    INDEX_JSON,
    ROW_OF,
    TOKENIZER_JSON,
    name_in_folder,
    row_tensor,
    table_tensors,
)
from pangu_sigma.stored.model import StoredModel
from pangu_sigma.text.tokenizer import copy_tokenizer
from pangu_sigma.training.first_checkpoint import unfinished_folder

CARD = "README.md"
HF_CODE = Path(__file__).with_name("hf_code")
"""Folder of the code for `transformers`, which is copied and never imported here: it needs torch."""
SHARD_BYTES = 4 << 30
"""Maximum bytes of tensors in a file of weights, unless one tensor alone has more."""


def write_hf_folder(model: StoredModel, output: Path, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write a model as a Hugging Face style folder, atomically and tensor by tensor. shard_bytes: maximum tensor bytes of a file.

    Raises ConfigError if `output` cannot be created, CheckpointError if a tensor cannot be read.
    """
    tables = table_tensors(model.table, model.config) | {ROW_OF: model.tokenizer.row_of}
    tensors = {name_in_folder(name): tensor for name, tensor in model.tensors.items()}
    for entry in range(len(model.config.model.rows)):
        met = zip(("keys", "weight"), model.rows(entry), strict=True)
        tables |= {row_tensor(entry, name): values for name, values in met}
    tensors |= {name: LazyArray.of(values, name) for name, values in tables.items()}
    shards = _divide({name: tensor.nbytes for name, tensor in tensors.items()}, shard_bytes)
    with unfinished_folder(output) as folder:
        copy_tokenizer(model.path / TOKENIZER_FOLDER, folder / TOKENIZER_FOLDER)
        written = _write_shards(folder, tensors, shards)
        sizes = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
        index = {"metadata": sizes, "weight_map": {name: file for file, names in shards.items() for name in names}}
        trees = {CONFIG_JSON: config_json(model), GENERATION_JSON: generation_json(model.config), INDEX_JSON: index}
        trees[TOKENIZER_JSON] = tokenizer_config_json(model)
        files = {name: f"{json.dumps(tree, ensure_ascii=False, indent=2)}\n".encode() for name, tree in trees.items()}
        if model.lineage is not None:
            files[LINEAGE_FILE] = sealed(model.lineage, record=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        (folder / CARD).write_text(model_card(model), encoding="utf-8")
        for name in code_files():
            shutil.copyfile(HF_CODE / name, folder / name)
        tokenizer = [f"{TOKENIZER_FOLDER}/{file.name}" for file in (folder / TOKENIZER_FOLDER).iterdir()]
        seal_folder(folder, [*files, *shards, *code_files(), *tokenizer], {"kind": MODEL_TYPE}, written)
    return output


def _divide(sizes: dict[str, int], most: int) -> dict[str, list[str]]:
    """Divide tensors among files, in order, each file as full as allowed. Returns the names by file."""
    groups: list[list[str]] = [[]]
    room = most
    for name, size in sizes.items():
        if groups[-1] and size > room:
            groups.append([])
            room = most
        groups[-1].append(name)
        room -= size
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": names for i, names in enumerate(groups, 1)}


def _write_shards(
    folder: Path, tensors: dict[str, LazyArray], shards: dict[str, list[str]]
) -> dict[str, dict[str, Any]]:
    """Write the files of the weights. Returns their fingerprints."""
    total, written = sum(tensor.nbytes for tensor in tensors.values()), {}
    with Bar(total=total, desc="writing", unit="B", unit_scale=True) as bar:
        for file, names in shards.items():
            arrays = {name: tensors[name] for name in names}
            # the reader of `transformers` requires the metadata
            written[file] = write_arrays(
                folder / file,
                arrays,
                lambda: None,
                {"format": "pt"},
                lambda name, first, values: bar.update(values.nbytes),
            )
    return written
