"""A model as a Hugging Face style folder, written whole or not at all, and read only as it was written.

    config.json                             sizes, domains, routing; the whole configuration (hf_config.py)
    model-00001-of-00003.safetensors …      weights by name (trained_model.py), and the routing table
    model.safetensors.index.json            which file has which tensor
    generation_config.json                  greedy; ids of <eot> and <pad>
    tokenizer/                              the run's, file by file
    lineage.json                            how it got its weights, if it has a receipt
    README.md                               the model card, which people edit: it is not sealed
    seal.json                               size and hash of every other file, and its own hash

The routing table is two tensors of int32. `tid2eid` [N, D, V], named as in DeepSeek-V4, whose hash-routed layers have such a table:
the expert of each token id, numbered over the whole layer as there; ours has axes for layers and domains. `tid2eid_spread` [D, V]:
how many experts of the domain's group an id is spread over by position; 1 for all of a random table.

N RRE layers, D domains, V vocabulary.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.model_files import TOKENIZER_FOLDER
from pangu_sigma.checkpoint.safetensors_file import DamagedArrays, map_arrays, write_arrays
from pangu_sigma.checkpoint.start_over import LINEAGE_FILE
from pangu_sigma.config import Config
from pangu_sigma.convert.hf_config import GENERATION, MODEL_TYPE, compare_keys, config_json, hash_keys, read_config_json
from pangu_sigma.convert.model_card import model_card
from pangu_sigma.convert.trained_model import TrainedModel, read_lineage, weight_shapes
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.foreign.dense_model import LayoutError
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.sealed import SEAL, check_file_list, seal_folder, unsealed, verify
from pangu_sigma.train.first_checkpoint import check_absent, unfinished_folder

CONFIG_JSON, GENERATION_JSON = "config.json", "generation_config.json"
INDEX_JSON, CARD = "model.safetensors.index.json", "README.md"
ROUTES, SPREAD = "tid2eid", "tid2eid_spread"
SHARD_BYTES = 4 << 30
"""Bytes of tensors in a file, at most, unless one tensor has more."""

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_FIX = "the folder was changed or is damaged; take it again, or write it again with `pangu-sigma convert RUN FOLDER --to hf`"


def write_hf_folder(model: TrainedModel, output: Path, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write a model to `output`. shard_bytes: of tensors in a file, at most.

    The folder appears whole or not at all; one tensor is in memory at a time. Raises ConfigError when `output` exists or cannot be
    made, CheckpointError when a tensor cannot be read.
    """
    check_absent(output, "as TO")
    tensors = model.tensors | _table_tensors(model)
    shards = _divide({name: tensor.nbytes for name, tensor in tensors.items()}, shard_bytes)
    with unfinished_folder(output) as folder:
        shutil.copytree(model.path / TOKENIZER_FOLDER, folder / TOKENIZER_FOLDER)
        written = _write_shards(folder, tensors, shards)
        sizes = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
        index = {"metadata": sizes, "weight_map": {name: file for file, names in shards.items() for name in names}}
        tree = config_json(model.config, model.tokenizer, model.table, model.step, model.data_hash)
        trees = {CONFIG_JSON: tree, GENERATION_JSON: GENERATION, INDEX_JSON: index}
        if model.lineage is not None:
            trees[LINEAGE_FILE] = model.lineage
        for name, content in trees.items():
            text = json.dumps(content, ensure_ascii=False, indent=2)
            (folder / name).write_text(f"{text}\n", encoding="utf-8")
        (folder / CARD).write_text(model_card(model), encoding="utf-8")
        tokenizer = [f"{TOKENIZER_FOLDER}/{file.name}" for file in (folder / TOKENIZER_FOLDER).iterdir()]
        seal_folder(folder, [*trees, *shards, *tokenizer], {"kind": MODEL_TYPE}, written)
    return output


def is_hf_folder(path: Path) -> bool:
    """True if a folder is one that `write_hf_folder` wrote, or was."""
    try:
        with open(path / CONFIG_JSON, "rb") as stream:
            return (path / SEAL).exists() or f'"{MODEL_TYPE}"'.encode() in stream.read(1 << 16)
    except OSError:
        return False


def read_hf_folder(path: Path, values: bool = True) -> TrainedModel:
    """The model in a folder that `write_hf_folder` wrote. values: False to leave the hashes of the weights' files unverified, which
    reads them whole; names, shapes, sizes, and all other files are checked with either.

    Raises DamagedFile for a file that is not what was written, LayoutError for what contradicts itself.
    """
    files = _sealed_files(path)
    config, step, data_hash = read_config_json(path / CONFIG_JSON, _read_json(path / CONFIG_JSON), _FIX)
    tokenizer = Tokenizer.load(path / TOKENIZER_FOLDER)
    if tokenizer.slot_rows.shape != (config.slots, config.model.slot_rows):
        slots, rows = tokenizer.slot_rows.shape
        raise LayoutError(
            f"{path / TOKENIZER_FOLDER}: has {slots} slots of {rows} rows, {CONFIG_JSON} has {config.slots} of "
            f"{config.model.slot_rows}; {_FIX}"
        )
    arrays = _map_shards(path, config, tokenizer, files)
    if values:
        for name in tqdm(sorted(set(_weight_map(path).values())), desc="verifying", unit="file", disable=None):
            verify(path / name, files[name], _FIX)
    table = _read_table(path, config, arrays.pop(ROUTES), arrays.pop(SPREAD))
    compare_keys(path / CONFIG_JSON, _read_json(path / CONFIG_JSON), hash_keys(tokenizer, table), "the folder", _FIX)
    tensors = {name: LazyArray.of(arrays[name], name) for name in weight_shapes(config)}
    return TrainedModel(path, "hf", config, tokenizer, table, step, data_hash, tensors, read_lineage(path))


def _table_tensors(model: TrainedModel) -> dict[str, LazyArray]:
    table = model.table
    first_D = np.arange(table.first_NDV.shape[1], dtype=np.int32) * table.experts
    return {
        ROUTES: LazyArray(table.first_NDV.shape, np.dtype(np.int32), partial(_numbered, table, first_D), ROUTES),
        SPREAD: LazyArray.of(table.spread_DV.astype(np.int32), SPREAD),
    }


def _numbered(table: RoutingTable, first_D: np.ndarray) -> Iterator[np.ndarray]:
    """Experts numbered over their layer, layer by layer."""
    for first_DV in table.first_NDV:
        yield first_DV.astype(np.int32) + first_D[:, None]


def _divide(sizes: dict[str, int], most: int) -> dict[str, list[str]]:
    """Names of the tensors of each file, in their order, each file as full as it may be."""
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
    with tqdm(total=total, desc="writing", unit="B", unit_scale=True, disable=None) as bar:

        def seen(name: str, first: int, values: np.ndarray) -> None:
            bar.update(values.nbytes)

        for file, names in shards.items():
            arrays = {name: tensors[name] for name in names}
            # the entry is what the reader of `transformers` asks for
            written[file] = write_arrays(folder / file, arrays, lambda: None, {"format": "pt"}, seen)
    return written


def _sealed_files(path: Path) -> dict[str, dict[str, Any]]:
    """Fingerprints of the files of a folder by name, all but those of the weights verified."""
    files = unsealed(path / SEAL, _FIX).get("files")
    check_file_list(path / SEAL, files, _FIX)
    assert isinstance(files, dict)
    needed = [CONFIG_JSON, GENERATION_JSON, INDEX_JSON]
    for name in (name for name in needed if name not in files):
        raise LayoutError(f"{path / SEAL}: does not list {name}; {_FIX}")
    for name, recorded in files.items():
        if not name.endswith(".safetensors"):
            verify(path / name, recorded, _FIX)
    if (path / LINEAGE_FILE).exists() and LINEAGE_FILE not in files:
        raise LayoutError(f"{path / LINEAGE_FILE}: is not among the files of {SEAL}; remove it: it was added later")
    return files


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise LayoutError(f"{file}: is not JSON that can be read ({error}); {_FIX}") from error


def _weight_map(path: Path) -> dict[str, str]:
    """File of each tensor. Raises LayoutError for an index that names anything but files of weights of its own folder."""
    file = path / INDEX_JSON
    tree = _read_json(file)
    found = tree.get("weight_map") if isinstance(tree, dict) else None
    if not isinstance(found, dict) or not isinstance(tree.get("metadata"), dict):
        raise LayoutError(f"{file}: has no weight_map and metadata; {_FIX}")
    for name, target in found.items():
        if not isinstance(target, str) or not _SHARD.fullmatch(target):
            raise LayoutError(
                f"{file}: {name[:100]} is in {str(target)[:100]!r}, which is no name of a file of weights in this folder "
                f"(model-00001-of-00003.safetensors); {_FIX}"
            )
    return found


def _map_shards(
    path: Path, config: Config, tokenizer: Tokenizer, files: dict[str, dict[str, Any]]
) -> dict[str, np.ndarray]:
    """Every tensor, mapped. Raises LayoutError unless names, types and shapes are those of the configuration, each in one file."""
    index = _weight_map(path)
    there = {file.name for file in path.glob("*.safetensors")}
    for name in sorted(there ^ set(index.values())):
        what = "is missing" if name not in there else f"is not in {INDEX_JSON}"
        raise LayoutError(f"{path / name}: {what}; {_FIX}")
    arrays: dict[str, np.ndarray] = {}
    for file in sorted(there):
        if file not in files:
            raise LayoutError(f"{path / SEAL}: does not list {file}; {_FIX}")
        if (size := (path / file).stat().st_size) != files[file]["bytes"]:
            raise LayoutError(f"{path / file}: has {size} bytes, {files[file]['bytes']} were written; {_FIX}")
        for name, values in _mapped(path / file).items():
            if index.get(name) != file:
                says = f"says {index[name]}" if name in index else "does not name it"
                raise LayoutError(f"{path / file}: has {name}, {INDEX_JSON} {says}; {_FIX}")
            arrays[name] = values
    _check_shapes(path, config, tokenizer, index, arrays)
    if _read_json(path / INDEX_JSON)["metadata"].get("total_size") != sum(each.nbytes for each in arrays.values()):
        raise LayoutError(f"{path / INDEX_JSON}: metadata.total_size is not the size of all tensors; {_FIX}")
    return arrays


def _mapped(file: Path) -> dict[str, np.ndarray]:
    try:
        return map_arrays(file)
    except (DamagedArrays, OSError) as error:
        raise LayoutError(f"{error}; {_FIX}") from error


def _check_shapes(
    path: Path, config: Config, tokenizer: Tokenizer, index: dict[str, str], arrays: dict[str, np.ndarray]
) -> None:
    domains = len(config.domains)
    wanted: dict[str, tuple[tuple[int, ...], str]] = {
        name: (shape, "float32") for name, shape in weight_shapes(config).items()
    }
    wanted[ROUTES] = (config.model.rre_layers, domains, tokenizer.size), "int32"
    wanted[SPREAD] = (domains, tokenizer.size), "int32"
    for name, (shape, dtype) in wanted.items():
        if name not in arrays:
            where = f"{path / index[name]}: {name} is not in it, as {INDEX_JSON} says" if name in index else None
            raise LayoutError(f"{where or f'{path / INDEX_JSON}: {name} of shape {shape} is missing'}; {_FIX}")
        if arrays[name].shape != shape or arrays[name].dtype.name != dtype:
            found = arrays[name]
            raise LayoutError(
                f"{path / index[name]}: {name} is {found.dtype.name} of shape {found.shape}, {CONFIG_JSON} needs {dtype} of shape "
                f"{shape}; {_FIX}"
            )
    for name in sorted({*arrays, *index} - wanted.keys()):
        raise LayoutError(f"{path / index[name]}: {name} is no tensor of this model; {_FIX}")


def _read_table(path: Path, config: Config, table_NDV: np.ndarray, spread_DV: np.ndarray) -> RoutingTable:
    """The routing table of two tensors. Raises LayoutError for numbers that are no experts of the domain's group."""
    experts = config.model.experts_per_domain
    first_NDV = np.empty(table_NDV.shape, np.int16)
    for domain, name in enumerate(each.name for each in config.domains):
        first = domain * experts
        local_NV = table_NDV[:, domain] - first
        for what, values, least, most in (
            (ROUTES, local_NV, 0, experts - 1),
            (SPREAD, spread_DV[domain], 1, experts),
        ):
            if values.size and not (least <= values.min() and values.max() <= most):
                shift = first if what == ROUTES else 0
                raise LayoutError(
                    f"{path}: {what} has numbers outside of {least + shift} … {most + shift} in domain {name}; {_FIX}"
                )
        first_NDV[:, domain] = local_NV
    return RoutingTable(first_NDV, spread_DV.astype(np.int16), experts)
