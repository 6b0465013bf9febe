"""Model on the disk, independent of its file format: configuration, tokenizer, routing table, and weights by name.

    run          run folder: the newest intact checkpoint; only this kind has Adam state
    checkpoint   folder of a checkpoint inside a run, without tokenizer
    export       folder of `export`: the weights are inside its graph
    hf           Hugging Face style folder of this project
    alpha        dense PanGu-α in the files of another project, without configuration and tokenizer

All kinds name weights alike: by the network's parameters, and `layers.<i>.ffn.experts.<e>.<w1|b1|w2|b2>` for experts, where i
counts all layers of the network and e the experts of the layer, domain after domain. Each expert has its own tensors: a domain is
then a list of names, and one tensor with the paper's 640 experts of a layer would have half a terabyte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.model_files import read_config, read_table, read_tokenizer
from pangu_sigma.checkpoint.parts import EXPERTS, ROWS, WEIGHTS
from pangu_sigma.checkpoint.run_folder import LINEAGE_FILE
from pangu_sigma.config import Config
from pangu_sigma.errors import LayoutError
from pangu_sigma.foreign.dense_model import DenseModel
from pangu_sigma.model.arrays import dense_shapes, stored_shapes
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.sealed import SEAL, fingerprint, unsealed
from pangu_sigma.sections import ModelConfig
from pangu_sigma.text.tokenizer import Tokenizer

TUNING_RESULT = Path("finetune/result.json")
"""File of the result of a fine-tuning in a run folder: files, dev loss, forgetting."""

Kind = Literal["run", "checkpoint", "export", "hf", "alpha"]

ListedArray = tuple[str, str, tuple[int, ...], str]
"""Shard of a checkpoint ("" in other files), name, shape and dtype of an array in a model's files."""
Listed = Iterator[ListedArray]


class StoredModel:
    """Model on the disk, as `open_model` returns it. Properties read their files when first used.

    made_from: origin of each weight, for files of another project. unused: entry of such files that is no weight → why.
    activation_known: False if the files do not state the activation and it is assumed.
    """

    kind: Kind
    made_from: Mapping[str, str] = {}
    unused: Mapping[str, str] = {}
    activation_known = True

    def __init__(self, path: Path, verified: bool = True):
        """verified: False to skip the hashes of the weights' files, whose verification reads them whole."""
        self.path, self._verified = path, verified

    @property
    def fix(self) -> str:
        """Advice to the user for a damaged tokenizer or configuration. Raises LayoutError for a kind of model that has none."""
        raise LayoutError(f"{self.path}: only a folder of this project has a tokenizer; name the run that it came from")

    @cached_property
    def config(self) -> Config:
        return read_config(self.path, self.kind, self.fix)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.path, self.fix)

    @cached_property
    def table(self) -> RoutingTable:
        """Routing tables of the model."""
        return read_table(self.path, self.fix)

    @cached_property
    def step(self) -> int | None:
        """Training step of the checkpoint that the weights are from; None if unknown."""
        return None

    @cached_property
    def data_hash(self) -> str | None:
        """Content hash of the prepared text that the model was trained on; None if unknown."""
        return None

    @cached_property
    def hash(self) -> str:
        """Hash that identifies the model: that of the file that holds the hashes of all its other files."""
        return str(fingerprint(self.path / SEAL)["xxh3_128"])

    @property
    def layout(self) -> str:
        """Name of the file format: the model's kind, or, for files of another project, their layout, such as "megatron"."""
        return self.kind

    @property
    def sizes(self) -> ModelConfig | DenseModel:
        """Sizes of the network: hidden, ffn, heads, layers, seq_length, and the activation."""
        return self.config.model

    @property
    def hashes(self) -> dict[str, str]:
        """Content hashes, by the name of what was hashed, such as "tokenizer" or "file"."""
        return {}

    @cached_property
    def lineage(self) -> dict[str, Any] | None:
        """Record of the weights' origin (lineage.json); None if the model has none. Raises DamagedFile if it was changed."""
        return read_lineage(self.path)

    @cached_property
    def tensors(self) -> Mapping[str, LazyArray]:
        """Weights by name, in the order of the network, read lazily."""
        return _Tensors(self)

    def array(self, shard: str, name: str) -> LazyArray | None:
        """Return an array by its shard and name in a checkpoint, experts stacked, [experts, …]; None if the files lack it."""
        if not shard.startswith(EXPERTS):
            return self.tensors.get(name) if shard == WEIGHTS else None
        segment, model = int(shard.removeprefix(EXPERTS)), self.config.model  # counted over all RRE layers
        expert_count = self.config.stored_experts(model.routed[segment])
        tensor_names = [expert_name(model, segment, expert, name) for expert in range(expert_count)]
        if tensor_names[0] not in self.tensors:
            return None
        tensors = [self.tensors[tensor_name] for tensor_name in tensor_names]
        return LazyArray(
            (len(tensors), *tensors[0].shape),
            tensors[0].dtype,
            lambda: (values for tensor in tensors for values in tensor.content()),
            f"{name} of {shard}",
            row=lambda expert: tensors[expert].read(),
        )

    def required(self, shard: str, name: str, shape: tuple[int, ...]) -> LazyArray:
        """Return an array, as `array` does. Raises LayoutError if the array is missing or has another shape."""
        array = self.array(shard, name)
        if array is None or array.shape != shape:
            problem = f"{'is missing' if array is None else f'is of shape {array.shape}'} in shard {shard}"
            raise LayoutError(f"{self.path}: {name} {problem}, the model needs shape {shape}: another configuration's")
        return array

    def tensor(self, name: str) -> np.ndarray:
        """Read the values of a weight, memory-mapped if they are contiguous in a file."""
        return self.tensors[name].read()

    def expert(self, segment: int, number: int, name: str) -> np.ndarray:
        """Read one weight of one expert. segment: index over all RRE layers. number: index of the expert in it."""
        return self.tensor(expert_name(self.config.model, segment, number, name))

    def rows(self, entry: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the keys [U], ascending, int64, and weights [U, W] of the rows of an entry of `model.rows` that a token met; all
        others are zeros. Raises LayoutError if they are missing."""
        shard, width = f"{ROWS}{entry}", self.config.model.rows[entry].width
        keys, weight = self.array(shard, "keys"), self.array(shard, "weight")
        if keys is None or weight is None or weight.shape != (*keys.shape, width):
            raise LayoutError(f"{self.path}: lacks rows of entry {entry} of width {width}; use its own configuration")
        return keys.read(), weight.read()

    def listed(self) -> Listed:
        """List (shard, name, shape, dtype) of each array in the model's files. If `verified`, their hashes are checked first."""
        return (("", name, tensor.shape, tensor.dtype.name) for name, tensor in self.tensors.items())


class _Tensors(Mapping[str, LazyArray]):
    """Weights of a model by name, each read lazily from the array that a checkpoint would have."""

    def __init__(self, model: StoredModel):
        self._model, self._shapes = model, weight_shapes(model.config)

    def __getitem__(self, name: str) -> LazyArray:
        """Return a weight; of an expert's, `layers.<layer>.ffn.(segments.<s>.)experts.<expert>.<name>`, the row of its array."""
        shape, sizes, words = self._shapes[name], self._model.config.model, name.split(".")
        if "experts" not in words:
            return self._model.required(WEIGHTS, name, shape)
        s = int(words[4]) if "segments" in words else 0
        segment = sizes.segments_of(int(words[1]) - sizes.dense_layers)[s]  # counted over all RRE layers
        expert_count = self._model.config.stored_experts(sizes.routed[segment])
        array = self._model.required(f"{EXPERTS}{segment}", words[-1], (expert_count, *shape))
        return array.part(int(words[-2]), name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def expert_name(model: ModelConfig, segment: int, expert: int | str, name: str) -> str:
    """Return the name of an expert's tensor `name`. segment: index over all RRE layers. expert: index in it; "*" for all."""
    layer, s = model.in_layer(segment)
    return f"layers.{model.dense_layers + layer}.ffn.{f'segments.{s}.' if s else ''}experts.{expert}.{name}"


def weight_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of a model by name, one for each expert, in the order of the network."""
    shapes = dense_shapes(config)
    for array, (experts, *shape) in stored_shapes(config).items():
        _, segment, name = array.split(".")
        shapes |= {expert_name(config.model, int(segment), expert, name): tuple(shape) for expert in range(experts)}
    return dict(sorted(shapes.items(), key=lambda item: _sort_key(item[0], config.model.layers)))


def _sort_key(name: str, layers: int) -> tuple[int, int, int]:
    """Return the sort key of a weight: tables first, then layer by layer with its experts in order, and the last norm."""
    words = name.split(".")
    if words[0] != "layers":
        return (layers if words[0] == "norm" else -1), 0, 0
    segment = int(words[4]) if "segments" in words else 0
    return int(words[1]), segment, int(words[-2]) + 1 if "experts" in words else 0


LINEAGE_FIX = "take it from a copy, or make the model again with the command that made it"


def read_lineage(folder: Path) -> dict[str, Any] | None:
    """Read lineage.json, the record of the weights' origin; None if the folder has none. Raises DamagedFile for a changed file."""
    file = folder / LINEAGE_FILE
    return unsealed(file, LINEAGE_FIX) if file.exists() else None


def read_tuning_result(run: Path) -> dict[str, Any] | None:
    """Read the result of a run's fine-tuning; None if there is no finished one. Raises DamagedFile for a changed file."""
    file, fix = run / TUNING_RESULT, "take it from a copy, or tune again in another folder"
    return unsealed(file, fix) if file.exists() else None
