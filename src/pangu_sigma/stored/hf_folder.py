"""Reader of a Hugging Face style folder of a model, which it verifies.

    config.json                             sizes, domains, routing; the whole configuration (hf_config.py)
    model-00001-of-00003.safetensors …      weights, the routing table, `tid2row`, and rows
    model.safetensors.index.json            file of each tensor, for other readers
    generation_config.json                  greedy; ids of <eot> and <pad>
    tokenizer/, tokenizer_config.json       files of the run's tokenizer; its domains and patterns
    *_pangu_sigma.py                        model, configuration and tokenizer for `transformers`, which we do not read
    lineage.json                            record of the weights' origin, if there is one
    README.md                               model card, which people edit; not in the seal
    seal.json                               size and hash of every other file, and its own hash

A folder that `save_pretrained` of transformers wrote, of such a model, is read, too. It has no seal and no lineage, and its files
of weights have other names; `config.json` names the version. Its tensors, tables and tokenizer are checked against each other.

Weights have the names of model.py, with the last words that torch's modules have: `_LAST_WORDS`. `tid2row` [slots, V] is the row of
each id in the word table of a slot, -1 for none, int32.

convert/README.md says what the tensors of the routing table, int32, and of rows hold. `keys` are int64 and ascend.

Shape suffixes: N segments of the RRE layers, D domains, V vocabulary, U rows that a token met, W their width.
"""

from __future__ import annotations

import json
import logging
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.model_files import TOKENIZER_FOLDER
from pangu_sigma.checkpoint.parts import ROWS
from pangu_sigma.checkpoint.run_folder import LINEAGE_FILE
from pangu_sigma.checkpoint.safetensors_file import map_arrays
from pangu_sigma.config import Config
from pangu_sigma.errors import LayoutError
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.rre.table_file import wrong_tables
from pangu_sigma.sealed import SEAL, DamagedFile, as_json, check_folder, fingerprint
from pangu_sigma.stored import hf_config
from pangu_sigma.stored.hf_config import FIX, saved_by_transformers
from pangu_sigma.stored.model import Kind, Listed, StoredModel, read_lineage, weight_shapes
from pangu_sigma.text.tokenizer import FILES, Tokenizer

logger = logging.getLogger(__name__)

CONFIG_JSON, GENERATION_JSON = "config.json", "generation_config.json"
TOKENIZER_JSON = "tokenizer_config.json"
INDEX_JSON = "model.safetensors.index.json"
ROUTES, SPREAD, COMMON_SPREAD = "tid2eid", "tid2eid_spread", "tid2eid_common_spread"
ROW_OF = "tid2row"
_OF_KEYS = ("tid2key", "before2key")
"""Names of the tables of an entry of `model.rows`: A and B."""

_LAST_WORDS = {
    **{name: f"{name}.weight" for name in ("embedding", "positions", "query_positions")},
    **{"gain": "weight", "w1": "up.weight", "b1": "up.bias", "w2": "down.weight", "b2": "down.bias"},
}
"""Last word of a weight's name → what stands there in the folder; other words are the same."""

_SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


class StoredFolder(StoredModel):
    """Model in a Hugging Face style folder, which `write_hf_folder` wrote, or transformers of what it had read from one.

    Names, shapes and sizes of weights are always checked; hashes if `verified`, where there are some. Raises DamagedFile for a file
    that was changed, LayoutError for files that contradict each other.
    """

    kind: Kind = "hf"
    fix = FIX

    def __init__(self, path: Path, verified: bool = True):
        """verified: as in `StoredModel`. The two JSON files of the configuration are always read and checked."""
        super().__init__(path, verified)
        # a folder of ours whose seal is lost must not pass for one of `save_pretrained`, which writes no seal
        self._is_ours = (path / SEAL).exists() or saved_by_transformers(_read_json(path / CONFIG_JSON)) is None
        for name in (GENERATION_JSON, CONFIG_JSON):
            self._check(name)
        self._json = _read_json(path / CONFIG_JSON)
        if not self._is_ours:
            logger.warning(
                "%s: transformers %s saved this folder, without hashes and lineage: names, shapes, tables and tokenizer are "
                "checked; a changed weight is not noticed",
                *(path, saved_by_transformers(self._json)),
            )
        self.config, self.step, self.data_hash = hf_config.read_config_json(path / CONFIG_JSON, self._json)

    def _check(self, name: str) -> None:
        """Verify a file, which must be in the seal of a folder of ours. Raises DamagedFile or LayoutError."""
        if self._is_ours and name not in check_folder(self.path, FIX, name)["files"]:
            raise LayoutError(f"{self.path / SEAL}: does not list {name}; {FIX}")

    @property
    def hashes(self) -> dict[str, str]:
        data = {"data": self.data_hash} if self.data_hash else {}
        return {"tokenizer": self.tokenizer.hash, "routing table": self.table.hash, **data}

    @cached_property
    def hash(self) -> str:
        """Hash that identifies the model. Without a seal: computed from configuration, weights and tokenizer, all read whole."""
        if self._is_ours:
            return super().hash
        files = [CONFIG_JSON, *self._weight_files(), *(f"{TOKENIZER_FOLDER}/{name}" for name in FILES)]
        return xxhash.xxh3_128_hexdigest(as_json({name: fingerprint(self.path / name) for name in files}))

    def _weight_files(self) -> list[str]:
        """Return the names of the files of weights; if the folder has a seal, after the files are verified."""
        if not self._is_ours:
            return sorted(file.name for file in self.path.iterdir() if _SHARD.fullmatch(file.name))
        return sorted(filter(_SHARD.fullmatch, check_folder(self.path, FIX, "model", self._verified)["files"]))

    @cached_property
    def lineage(self) -> dict[str, Any] | None:
        """As in `StoredModel`. Raises LayoutError for a file that the seal does not list."""
        file = self.path / LINEAGE_FILE
        if self._is_ours and LINEAGE_FILE not in check_folder(self.path, FIX, LINEAGE_FILE)["files"] and file.exists():
            raise LayoutError(f"{file}: is not among the files of {SEAL}; remove it: it was added later")
        return read_lineage(self.path)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the model. Raises LayoutError if config.json states another one."""
        folder, config = self.path / TOKENIZER_FOLDER, self.config
        if not self._is_ours and not folder.is_dir():
            fix = f"save the tokenizer, too: tokenizer.save_pretrained({str(self.path)!r})"
            raise LayoutError(f"{folder}: is not there; {fix}")
        tokenizer = super().tokenizer if self._is_ours else Tokenizer.load(folder)
        slots, rows = tokenizer.slot_rows.shape
        if (slots, rows) != (config.slots, config.model.slot_rows):
            raise LayoutError(f"{folder}: has {slots} slots of {rows} rows, not the ones of {CONFIG_JSON}; {FIX}")
        hf_config.compare_keys(self.path / CONFIG_JSON, self._json, hf_config.tokenizer_keys(tokenizer))
        return tokenizer

    @cached_property
    def table(self) -> RoutingTable:
        table = _read_table(self.path, self.config, self._arrays)
        hf_config.compare_keys(self.path / CONFIG_JSON, self._json, {hf_config.ROUTING_KEY: table.hash})
        return table

    @cached_property
    def tensors(self) -> dict[str, LazyArray]:
        return {name: LazyArray.of(self._arrays[name_in_folder(name)], name) for name in weight_shapes(self.config)}

    def array(self, shard: str, name: str) -> LazyArray | None:
        """As in `StoredModel`, and for rows, which are tensors of the folder."""
        if not shard.startswith(ROWS):
            return super().array(shard, name)
        array = self._arrays.get(row_tensor(int(shard.removeprefix(ROWS)), name))
        return None if array is None else LazyArray.of(array, f"{name} of {shard}")

    def listed(self) -> Listed:
        """As in `StoredModel`, with the keys and weights of rows."""
        yield from super().listed()
        for entry in range(len(self.config.model.rows)):
            for name, array in zip(("keys", "weight"), self.rows(entry), strict=True):
                yield f"{ROWS}{entry}", name, array.shape, array.dtype.name

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        """Tensors of all files by name, mapped. Raises LayoutError unless each tensor is in one file and as the configuration
        implies, and `tid2row`, the rows of ids in word tables, is the tokenizer's."""
        self._check(INDEX_JSON)  # only verified: it is for other readers
        arrays: dict[str, np.ndarray] = {}
        for file in self._weight_files():
            try:
                file_arrays = map_arrays(self.path / file)
            except (DamagedFile, OSError) as error:
                raise LayoutError(f"{error}; {FIX}") from error
            if duplicates := sorted(file_arrays.keys() & arrays.keys()):
                raise LayoutError(f"{self.path / file}: has {duplicates[0]}, which is in another file, too; {FIX}")
            arrays |= file_arrays
        _check_shapes(self.path, self.config, self.tokenizer, arrays)
        row_counts = [len(arrays[row_tensor(entry, "keys")]) for entry in range(len(self.config.model.rows))]
        if row_counts:  # config.json has the key only if the model has rows
            hf_config.compare_keys(self.path / CONFIG_JSON, self._json, {hf_config.ROWS_KEY: row_counts})
        if (arrays[ROW_OF] != self.tokenizer.row_of).any():
            raise LayoutError(f"{self.path}: {ROW_OF} is not what the tokenizer says; {FIX}")
        return arrays


def name_in_folder(name: str) -> str:
    """Return the name of a weight in a Hugging Face style folder. name: its name in `StoredModel.tensors`."""
    prefix, dot, last_word = name.rpartition(".")
    return f"{prefix}{dot}{_LAST_WORDS.get(last_word, last_word)}"


def row_tensor(entry: int, name: str) -> str:
    """Return the name of a tensor of an entry of `model.rows` in a Hugging Face style folder. name: such as "keys"."""
    return f"rows.{entry}.{name}"


def _read_json(file: Path) -> Any:
    """Return the value of a JSON file. Raises LayoutError for a file that is missing or no JSON."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise LayoutError(f"{file}: is not JSON that can be read ({error}); {FIX}") from error


def _check_shapes(path: Path, config: Config, tokenizer: Tokenizer, arrays: dict[str, np.ndarray]) -> None:
    """Raise LayoutError unless a folder has the model's tensors, of the right shapes and dtypes, with ascending keys of rows."""
    specs = {name_in_folder(name): (shape, "float32") for name, shape in weight_shapes(config).items()}
    tables = _table_shapes(config, tokenizer.size) | {ROW_OF: tokenizer.row_of.shape}
    specs |= {name: (shape, "int32") for name, shape in tables.items()}
    for e, entry in enumerate(config.model.rows):
        keys, weight = row_tensor(e, "keys"), row_tensor(e, "weight")
        count = arrays[keys].size if keys in arrays else 0  # any: training decides which rows exist
        specs |= {keys: ((count,), "int64"), weight: ((count, entry.width), "float32")}
    for name, (shape, dtype) in specs.items():
        if name not in arrays:
            raise LayoutError(f"{path}: {name} of shape {shape} is in no file of weights; {FIX}")
        array = arrays[name]
        if (array.shape, array.dtype.name) != (shape, dtype):
            form, required_form = f"{array.dtype.name} of shape {array.shape}", f"{dtype} of shape {shape}"
            raise LayoutError(f"{path}: {name} is {form}, {CONFIG_JSON} needs {required_form}; {FIX}")
    for name in sorted(arrays.keys() - specs.keys()):
        raise LayoutError(f"{path}: {name} is no tensor of this model; {FIX}")
    for e, entry in enumerate(config.model.rows):
        name, end = row_tensor(e, "keys"), config.stored_rows(entry)
        bounded_keys = np.r_[-1, arrays[name], end]
        if (bounded_keys[:-1] >= bounded_keys[1:]).any():
            raise LayoutError(f"{path}: {name} does not ascend from 0 to {end - 1} at most; {FIX}")


def table_tensors(table: RoutingTable, config: Config) -> dict[str, np.ndarray]:
    """Return the tensors of a routing table by name, int32. They number own experts over all domains, `table` within each domain.

    tid2eid [layers, (segments,) D, V], tid2eid_spread [D, V], tid2eid_common_spread [V]; for each entry of `model.rows`, tid2key
    [V] and before2key [V + 1]."""
    numbered_NDV = table.first_NDV + _first_own_expert(config, table.experts)
    shapes = _table_shapes(config, table.spread_DV.shape[-1])
    tensors = {ROUTES: numbered_NDV.reshape(shapes[ROUTES]), SPREAD: table.spread_DV.astype(np.int32)}
    if table.common_spread_V is not None:
        tensors[COMMON_SPREAD] = table.common_spread_V.astype(np.int32)
    if table.row_EV is not None and table.before_EV1 is not None:
        for e, pair in enumerate(zip(table.row_EV, table.before_EV1, strict=True)):
            tensors |= {row_tensor(e, name): array for name, array in zip(_OF_KEYS, pair, strict=True)}
    return tensors


def _first_own_expert(config: Config, experts: int) -> np.ndarray:
    """Return the number of each domain's first expert in each segment, int32 [N, D, 1]; 0 where all domains share experts."""
    own_N = np.array([kind == "own" for kind in config.model.routed], np.int32)
    return own_N[:, None, None] * np.arange(len(config.domains), dtype=np.int32)[:, None] * experts


def _table_shapes(config: Config, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a routing table's tensors by name. The axis of segments exists only if a layer has several."""
    model, shape_DV = config.model, (len(config.domains), vocabulary)
    segments = (len(model.segments),) if len(model.segments) > 1 else ()
    shapes = {ROUTES: (model.rre_layers, *segments, *shape_DV), SPREAD: shape_DV}
    for e in range(len(model.rows)):
        of_token, of_token_before = (row_tensor(e, name) for name in _OF_KEYS)
        shapes |= {of_token: (vocabulary,), of_token_before: (vocabulary + 1,)}  # before the first token is none
    return shapes | ({COMMON_SPREAD: (vocabulary,)} if model.common_experts else {})


def _read_table(path: Path, config: Config, arrays: dict[str, np.ndarray]) -> RoutingTable:
    """Build the routing table from its tensors, the inverse of `table_tensors`. Raises LayoutError if an entry names an expert that
    does not exist, or one of another domain, and if keys of rows are not below the number of rows."""
    model = config.model
    numbered_NDV = arrays[ROUTES].reshape(len(model.routed), *arrays[SPREAD].shape)
    # the tensors number experts over all domains, the table within a domain
    first_NDV = numbered_NDV - _first_own_expert(config, model.experts_per_domain)
    fields: dict[str, np.ndarray] = {"first_NDV": _int16(first_NDV), "spread_DV": _int16(arrays[SPREAD])}
    if model.common_experts:
        common_N = np.array([0 if kind == "own" else model.common_experts for kind in model.routed])  # 0: none
        fields |= {"common_N": _int16(common_N), "common_spread_V": _int16(arrays[COMMON_SPREAD])}
    for field, name in zip(("row_EV", "before_EV1"), _OF_KEYS, strict=True):
        if model.rows:
            fields[field] = np.stack([arrays[row_tensor(e, name)] for e in range(len(model.rows))])
    table = RoutingTable(experts=model.experts_per_domain, **fields)
    problem = wrong_tables(**vars(table))
    if problem is None and not table.has_keys_of(model.rows):
        problem = "keys of rows that there are not"
    if problem:
        raise LayoutError(f"{path}: the tensors {ROUTES}… are no routing table of this model: {problem}; {FIX}")
    return table


def _int16(values: np.ndarray) -> np.ndarray:
    """Return values as int16. A value that does not fit becomes -1 or 32,767, which `wrong_tables` refuses."""
    return values.clip(-1, np.iinfo(np.int16).max).astype(np.int16)
