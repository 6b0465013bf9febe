"""Conversion of a trained model: a run into a Hugging Face style folder (read by stored/hf_folder.py), and back into a run."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any, Literal

from pangu_sigma.bars import Bar
from pangu_sigma.checkpoint.compose import compose
from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.model_files import TOKENIZER_FOLDER, write_model_files
from pangu_sigma.checkpoint.run_folder import LINEAGE_FILE
from pangu_sigma.checkpoint.safetensors_file import write_arrays
from pangu_sigma.config import ConfigError
from pangu_sigma.convert.readmes import model_card
from pangu_sigma.sealed import add_to_seal, seal_folder, sealed, write_atomically
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
from pangu_sigma.stored.open import KIND_NAMES, open_model
from pangu_sigma.stored.run import StoredRun
from pangu_sigma.text.tokenizer import copy_tokenizer
from pangu_sigma.training.first_checkpoint import unfinished_folder, write_step_0

logger = logging.getLogger(__name__)

Form = Literal["hf", "run"]
CARD = "README.md"
HF_CODE = Path(__file__).with_name("hf_code")
"""Folder of the code for `transformers`, which is copied and never imported here: it needs torch."""
SHARD_BYTES = 4 << 30
"""Maximum bytes of tensors in a file of weights, unless one tensor alone has more."""


def convert_model(source: Path, output: Path, to: Form) -> Path:
    """Convert the model in `source` to the folder `output`, which is created atomically. to: "hf" (Hugging Face style) or "run".

    Raises ConfigError if `output` exists or `source` has that form already, and the errors of a missing or damaged model.
    """
    model = open_model(source, "run", "hf")
    if model.kind == to:
        raise ConfigError(f"{source} is {KIND_NAMES[to]} already; to have it twice, copy the folder")
    return write_hf_folder(model, output) if to == "hf" else write_run(model, output)


def write_run(model: StoredModel, folder: Path) -> Path:
    """Write a model to `folder` as a run at step 0. Prepared data is not needed until the run is trained.

    Adam state and the position in the data start from zero, which is logged. The folder is created atomically. Raises ConfigError
    if it cannot be created.
    """
    config = model.config.model_copy(update={"finetune": None})  # it can be trained again
    with unfinished_folder(folder) as path:
        write_model_files(path, config, model.tokenizer, model.table)
        write_step_0(StoredRun(path), compose(config, lambda shard, name, shape: model.array(shard, name)))
        receipt = {
            "kind": "export",
            "parent": str(model.path),
            "layout": model.layout,
            "parent_step": model.step,
            "parent_hash": model.hash,
            "before": model.lineage,
        }
        write_atomically(path / LINEAGE_FILE, sealed(receipt, record=True))
        add_to_seal(path, LINEAGE_FILE)
    logger.info(
        "%s: the weights of step %d are its step 0; Adam's state and the position in the data start from nothing. To train on, set "
        "data.path to data prepared with the same vocabulary (hash %s…); it is %s now",
        *(folder, model.step, model.tokenizer.hash[:12], model.config.data.path),
    )
    return folder


def write_hf_folder(model: StoredModel, output: Path, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write a model as a Hugging Face style folder, atomically and tensor by tensor. shard_bytes: maximum tensor bytes of a file.

    Raises ConfigError if `output` cannot be created, CheckpointError if a tensor cannot be read.
    """
    tables = table_tensors(model.table, model.config) | {ROW_OF: model.tokenizer.row_of}
    tensors = {name_in_folder(name): tensor for name, tensor in model.tensors.items()}
    for entry in range(len(model.config.model.rows)):
        arrays = zip(("keys", "weight"), model.rows(entry), strict=True)
        tables |= {row_tensor(entry, name): values for name, values in arrays}
    tensors |= {name: LazyArray.of(values, name) for name, values in tables.items()}
    names_by_file = _assign_files({name: tensor.nbytes for name, tensor in tensors.items()}, shard_bytes)
    with unfinished_folder(output) as folder:
        copy_tokenizer(model.path / TOKENIZER_FOLDER, folder / TOKENIZER_FOLDER)
        fingerprints = _write_weight_files(folder, tensors, names_by_file)
        metadata = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
        index = {
            "metadata": metadata,
            "weight_map": {name: file for file, names in names_by_file.items() for name in names},
        }
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
        seal_folder(folder, [*files, *names_by_file, *code_files(), *tokenizer], {"kind": MODEL_TYPE}, fingerprints)
    return output


def _assign_files(sizes: dict[str, int], file_limit: int) -> dict[str, list[str]]:
    """Assign tensors to files, in order, each file as full as allowed. Returns the names of tensors by file.

    sizes: bytes of each tensor. file_limit: maximum bytes of a file, unless one tensor alone has more."""
    files: list[list[str]] = [[]]
    room = file_limit
    for name, size in sizes.items():
        if files[-1] and size > room:
            files.append([])
            room = file_limit
        files[-1].append(name)
        room -= size
    return {f"model-{i:05d}-of-{len(files):05d}.safetensors": names for i, names in enumerate(files, 1)}


def _write_weight_files(
    folder: Path, tensors: dict[str, LazyArray], names_by_file: dict[str, list[str]]
) -> dict[str, dict[str, Any]]:
    """Write the safetensors files of a model. Return the fingerprint of each file by its name, for the seal.

    tensors: all tensors by name. names_by_file: names of the tensors in each file."""
    total, fingerprints = sum(tensor.nbytes for tensor in tensors.values()), {}
    with Bar(total=total, desc="writing", unit="B", unit_scale=True) as bar:
        for file, names in names_by_file.items():
            arrays, metadata = {name: tensors[name] for name in names}, {"format": "pt"}  # `transformers` requires it
            fingerprints[file] = write_arrays(
                folder / file, arrays, metadata, lambda name, values: bar.update(values.nbytes)
            )
    return fingerprints
