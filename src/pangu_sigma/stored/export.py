"""Exported model: the weights are inside its MindIR graph, and are read without MindSpore.

model.mindir          the graph: a protobuf ModelProto  graph = 7:  GraphProto  parameter = 3*:  TensorProto
                      dims = 1*, data_type = 2, name = 7, raw_data = 9, external_data = 12:  location = 1, offset = 2, length = 3
model_variables/      values of a model of more than 1 GiB, where MindSpore writes them beside the graph
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from ascend_ops.few_rows import Matrix, StoredPrecision
from pangu_sigma.checkpoint.lazy import LazyArray, map_file
from pangu_sigma.checkpoint.parts import EXPERTS, WEIGHTS
from pangu_sigma.foreign.protobuf import Field, message, numbers
from pangu_sigma.model.arrays import dense_shapes, stored_shapes
from pangu_sigma.sealed import DamagedFile, check_folder
from pangu_sigma.stored.model import Kind, Listed, StoredModel

GRAPH_FILE = "model.mindir"
EXPORT_AGAIN = "run `pangu-sigma export` again, or copy the folder again"
"""Advice for a damaged export."""
SCALE_ENDING = ".scale"
"""Suffix of the name of the array with the row scales of an int8 matrix."""
_KINDS = {1: "<f4", 3: "i1", 6: "<i4", 7: "<i8", 10: "<f2"}
"""data_type of a TensorProto → NumPy dtype."""


class StoredExport(StoredModel):
    """Exported model: folder that `export` wrote. Raises DamagedFile for a file that differs from what was written.

    `array` returns weights converted to float32 at each read. `matrix` and `arrays` return weights as stored.
    """

    kind: Kind = "export"
    fix = EXPORT_AGAIN

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Contents of seal.json: `signature` (inputs, outputs) of the graph, `weights` (dtype). Every file is verified."""
        return check_folder(self.path, EXPORT_AGAIN)

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """Weights in the graph of the export, by name, as stored: float32, float16 or int8, unaligned in memory.

        Names: of dense tensors, and `experts.<segment>.<name>`, [experts, …], segments numbered over all RRE
        layers; `rows.<entry>.numbers` and `rows.<entry>.weight` have the rows that a token met, and one of zeros at the end.
        NAME.scale has the row scales of an int8 NAME.
        """
        _ = self.facts  # verifies
        try:
            return dict(_parameters(self.path))
        except (ValueError, KeyError, OSError) as error:
            raise DamagedFile(f"{self.path / GRAPH_FILE}: no MindIR with weights ({error}); {EXPORT_AGAIN}") from error

    def array(self, shard: str, name: str) -> LazyArray | None:
        """Return an array as float32, by its shard and name in a checkpoint; None if the export lacks it, such as Adam state."""
        full_name = name if shard == WEIGHTS else f"experts.{shard.removeprefix(EXPERTS)}.{name}"
        array, scales = self.arrays.get(full_name), self.arrays.get(f"{full_name}{SCALE_ENDING}")
        if array is None or array.dtype == np.float32:
            return None if array is None else LazyArray.of(array, full_name)

        def to_float32(index: Any) -> np.ndarray:
            """Convert row `index`, or all values if `index` is `...`; rows of an int8 matrix have a scale each."""
            values = array[index].astype(np.float32)
            return values if scales is None else values * scales[index][..., None]

        return LazyArray(array.shape, np.dtype(np.float32), lambda: [to_float32(...)], full_name, row=to_float32)

    @property
    def precision(self) -> StoredPrecision:
        """Dtype of the export's matrices."""
        return cast(StoredPrecision, self.arrays["embedding"].dtype.name)

    def matrix(self, name: str, number: int | None = None) -> Matrix:
        """Return a matrix as stored. name: key of `arrays`. number: expert, in an array of several experts; None for the array."""
        values, scales = self.arrays[name], self.arrays.get(f"{name}{SCALE_ENDING}")
        index = ... if number is None else number
        return Matrix(values[index], None if scales is None else scales[index])

    def rows(self, entry: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the keys [U], ascending, and weights [U, W] of an entry of `model.rows`, without the graph's last row of zeros."""
        keys, weight = (self.arrays.get(f"rows.{entry}.{name}") for name in ("numbers", "weight"))
        width = self.config.model.rows[entry].width
        if keys is None or weight is None or keys.ndim != 1 or weight.shape != (*keys.shape, width):
            raise DamagedFile(f"{self.path / GRAPH_FILE}: lacks rows of entry {entry} of width {width}; {EXPORT_AGAIN}")
        return keys[:-1].copy(), weight[:-1]  # the copy is aligned in memory, which a search needs

    def listed(self) -> Listed:
        """Return ("", name, shape, "float32") for each weight that the export's configuration implies."""
        if self._verified:
            _ = self.facts  # verifies
        shapes = dense_shapes(self.config) | stored_shapes(self.config)
        return (("", name, shape, "float32") for name, shape in shapes.items())


def _parameters(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and values of each parameter in the graph of an export; the network's prefix is removed from the name."""
    map_once = cache(partial(_map, folder))
    model = memoryview(map_once(GRAPH_FILE))  # type: ignore[arg-type]
    graphs = message(model, 0, len(model)).get(7)  # field 7 of ModelProto: graph
    if not graphs:
        raise ValueError("no graph")
    for parameter in message(model, graphs[0].begin, graphs[0].end).get(3, []):  # GraphProto: parameter
        name, values = _parameter(model, parameter, map_once)
        yield name.removeprefix("network."), values


def _parameter(model: memoryview, parameter: Field, map_once: Callable[[str], np.ndarray]) -> tuple[str, np.ndarray]:
    """Return name and values of the TensorProto `parameter` of the graph's file `model`, which has the values or names their file.
    map_once: function that maps a file of the folder by its name. Raises ValueError or KeyError for a damaged TensorProto."""
    fields = message(model, parameter.begin, parameter.end)
    dims = [n for field in fields.get(1, []) for n in numbers(model, field)]  # 1: dims
    name = str(model[fields[7][-1].begin : fields[7][-1].end], "utf-8")
    file, begin, length = GRAPH_FILE, 0, 0
    if 12 in fields:  # external_data
        location = message(model, fields[12][-1].begin, fields[12][-1].end)
        file = str(model[location[1][-1].begin : location[1][-1].end], "utf-8")
        begin, length = location[2][-1].value, location[3][-1].value
    elif 9 in fields:  # raw_data
        begin, length = fields[9][-1].begin, fields[9][-1].value
    content, dtype = map_once(file), np.dtype(_KINDS[fields[2][-1].value])
    if length != math.prod(dims) * dtype.itemsize or begin + length > len(content):
        raise ValueError(f"{name} of shape {dims} has {length} bytes")
    return name, np.ndarray(dims, dtype, content, begin)


def _map(folder: Path, name: str) -> np.ndarray:
    """Map the file `name` of an export's folder, read-only. Raises ValueError for a name that is not of a file inside."""
    if Path(name).is_absolute() or ".." in Path(name).parts or not (folder / name).is_file():
        raise ValueError(f"{name[:100]!r} is no file of this folder")
    content = map_file(folder / name)
    content.flags.writeable = False
    return content
