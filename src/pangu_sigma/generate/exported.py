"""Folders that `export` wrote, and the weights inside of their graphs, without MindSpore.

model.mindir          the graph: a protobuf ModelProto  graph = 7:  GraphProto  parameter = 3*:  TensorProto
                      dims = 1*, data_type = 2, name = 7, raw_data = 9, external_data = 12:  location = 1, offset = 2, length = 3
model_variables/      values of a model of more than 1 GiB, where MindSpore writes them beside the graph
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ascend_ops.few_rows import Matrix, Precision
from pangu_sigma.checkpoint.mapped_file import map_file
from pangu_sigma.checkpoint.model_files import read_config, read_model_files
from pangu_sigma.checkpoint.protobuf import OF_NUMBER, Field, fields, numbers
from pangu_sigma.config import Config, ConfigError
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.rre.table import RoutingTable
from pangu_sigma.sealed import DamagedFile

GRAPH_FILE = "model.mindir"
EXPORT_AGAIN = "run `pangu-sigma export` again, or copy the folder again"
"""The way back from a damaged export."""

SCALE_ENDING = ".scale"
"""Ending of the name of an array that has the scales of another one's rows."""

_KINDS: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 3: np.dtype("i1"), 6: np.dtype("<i4"), 10: np.dtype("<f2")}
"""Types of values by their numbers in a TensorProto."""


@dataclass(frozen=True)
class Export:
    """What a folder holds besides its graph. facts: what its seal says."""

    folder: Path
    config: Config
    tokenizer: Tokenizer
    table: RoutingTable
    facts: dict[str, Any]


def open_export(folder: Path) -> Export:
    """A folder that `export` wrote, every byte verified. Raises ConfigError when it is none, DamagedFile for a file that is not
    what was written."""
    if not (folder / GRAPH_FILE).exists():
        raise ConfigError(f"{folder} is not an exported model: it has no {GRAPH_FILE}; run `pangu-sigma export` first")
    config = read_config(folder, "export", EXPORT_AGAIN)
    return Export(folder, config, *read_model_files(folder, EXPORT_AGAIN))


class ExportedWeights:
    """The weights of an exported graph: arrays of its mapped file, which is read where they are used.

    `tensor` and `expert` are those of `Weights`, in float32: what is kept otherwise is computed at each call. `matrix`, `kept` and
    `scales` give arrays as they lie in the file, where they begin at any byte.
    """

    def __init__(self, folder: Path):
        """Raises DamagedFile when the graph is no MindIR with weights."""
        self._folder = folder
        self._maps: dict[str, memoryview] = {}
        try:
            self._arrays = dict(self._parameters(self._map(GRAPH_FILE)))
        except (ValueError, KeyError, OSError) as error:
            raise DamagedFile(f"{folder / GRAPH_FILE}: is no MindIR with weights ({error}); {EXPORT_AGAIN}") from error

    @property
    def names(self) -> list[str]:
        """Names of all arrays."""
        return list(self._arrays)

    def tensor(self, name: str) -> np.ndarray:
        return self._read(name, ...)

    def expert(self, layer: int, number: int, name: str) -> np.ndarray:
        return self._read(f"experts.{layer}.{name}", number)

    def kept(self, name: str) -> np.ndarray:
        """An array as it is kept: float32, float16 or int8. name: of a dense tensor, or `experts.<layer>.<name>`, [experts, …]."""
        return self._arrays[name]

    @property
    def precision(self) -> Precision:
        """How matrices are kept."""
        return cast(Precision, self._arrays["embedding"].dtype.name)

    def matrix(self, name: str, number: int | None = None) -> Matrix:
        """A matrix as it is kept: a dense one, or that of an expert, of `experts.<layer>.<name>`."""
        which = ... if number is None else number
        scales = self.scales(name)
        return Matrix(self._arrays[name][which], None if scales is None else scales[which])

    def scales(self, name: str) -> np.ndarray | None:
        """The scales, float32, of the rows of an array that is kept in int8, [rows] or [experts, rows]; None for others."""
        return self._arrays.get(f"{name}{SCALE_ENDING}")

    def _read(self, name: str, which: Any) -> np.ndarray:
        values, scales = np.asarray(self._arrays[name][which], np.float32), self.scales(name)
        return values if scales is None else values * scales[which][..., None]

    def _parameters(self, graph: memoryview) -> Iterator[tuple[str, np.ndarray]]:
        """Name and values of each parameter of the graph; those of its network as the network names them."""
        model = next((each for each in fields(graph, 0, len(graph)) if each.number == 7), None)
        if model is None:
            raise ValueError("no graph")
        for found in fields(graph, model.begin, model.end):
            if found.number == 3:
                name, values = self._parameter(graph, found)
                yield name.removeprefix("network."), values

    def _parameter(self, graph: memoryview, of: Field) -> tuple[str, np.ndarray]:
        dims, kind, name, file, begin, length = [], 0, "", GRAPH_FILE, 0, 0
        for each in fields(graph, of.begin, of.end):
            if each.number == 1:
                dims += numbers(graph, each)
            elif each.number == 2 and each.way == OF_NUMBER:
                kind = each.value
            elif each.number == 7:
                name = str(graph[each.begin : each.end], "utf-8")
            elif each.number == 9:
                begin, length = each.begin, each.value
            elif each.number == 12:
                inner = {found.number: found for found in fields(graph, each.begin, each.end)}
                file = str(graph[inner[1].begin : inner[1].end], "utf-8")
                begin, length = inner[2].value, inner[3].value
        content, dtype = self._map(file), _KINDS[kind]
        if length != math.prod(dims) * dtype.itemsize or begin + length > len(content):
            raise ValueError(f"{name} of shape {dims} has {length} bytes")
        return name, np.ndarray(dims, dtype, content, begin)

    def _map(self, name: str) -> memoryview:
        """A file of the folder, mapped once."""
        if name not in self._maps:
            if Path(name).is_absolute() or ".." in Path(name).parts or not (self._folder / name).is_file():
                raise ValueError(f"{name[:100]!r} is no file of this folder")
            self._maps[name] = memoryview(map_file(self._folder / name)).toreadonly()
        return self._maps[name]
