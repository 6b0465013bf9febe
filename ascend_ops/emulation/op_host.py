"""Call the host sides of the Ascend C operators (`op_host/`), compiled unchanged, from Python as CANN does.

Shapes are tuples of one or two sizes, None for an absent input; dtypes are those of the rows, an index is int32.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ascend_ops.emulation.compiling import PROJECT, compile_harness

SOCS = {"910A": ("Ascend910", 32), "910B": ("Ascend910B", 48), "910_93": ("Ascend910_93", 48)}
"""Name in CANN, and number of vector cores of the largest bin."""

TYPES = {"float32": 0, "float16": 1, "int32": 3, "bfloat16": 27}
"""CANN's numbers of dtypes."""

_NAMES = {number: name for name, number in TYPES.items()}
_FORMATS = {2: "ND"}
_INPUTS, _AXES = 3, 2

Shapes = Sequence[tuple[int, ...] | None]


class Tiling(ctypes.Structure):
    """Tiling data of the operators: the struct RowsTilingData of `op_kernel/tiling_data.h`."""

    _fields_ = [
        (name, ctypes.c_uint32)
        for name in re.findall(r"uint32_t (\w+);", (PROJECT / "op_kernel" / "tiling_data.h").read_text())
    ]

    def values(self) -> dict[str, int]:
        """Return the value of every field, by name."""
        return {name: getattr(self, name) for name, *_ in self._fields_}


@dataclass(frozen=True)
class Launch:
    """Result of an operator's tiling function: tiling data, number of blocks to launch, and bytes of workspace."""

    tiling: Tiling
    blocks: int
    workspace: int


@dataclass(frozen=True)
class Argument:
    """An operator's declaration of an argument for one chip.

    dynamic: True if the operator has the three flags with which CANN gives it shapes and ranks that a graph does not know. output:
    True for an output, False for an input. contiguous: True if CANN copies a strided argument first. dtypes, formats: by variant.
    """

    operator: str
    chip: str
    dynamic: bool
    output: bool
    name: str
    required: bool
    contiguous: bool
    dtypes: tuple[str, ...]
    formats: tuple[str, ...]


class TilingError(Exception):
    """Raised if a tiling or inference function of an operator returns GRAPH_FAILED, or an operator has none."""


class OpHost:
    """Host functions (tiling, shape inference) of both Ascend C operators. Raises TilingError if an operator lacks a function.

    library: made by `compile_host`; None for the one of the shipped sources.
    """

    def __init__(self, library: Path | None = None):
        self._library = ctypes.CDLL(str(library or compile_host()))
        self._library.definitions.restype = self._library.missing.restype = ctypes.c_char_p
        self._library.tile.restype = ctypes.c_int64
        for operator in dict.fromkeys(argument.operator for argument in self.definitions()):
            if missing := self._library.missing(operator.encode()).decode():
                raise TilingError(f"{operator} has no{missing}, which CANN would call")

    def definitions(self) -> list[Argument]:
        """Return the arguments of every operator for every chip that it supports, in the order of declaration."""
        arguments = []
        for line in self._library.definitions().decode().splitlines():  # as host.cpp prints them
            operator, chip, shapes, direction, name, need, layout, *variants = line.split()
            pairs = [tuple(map(int, variant.split(":"))) for variant in variants]
            dtypes = tuple(_NAMES.get(dtype, "?") for dtype, _ in pairs)
            formats = tuple(_FORMATS.get(form, "?") for _, form in pairs)
            arguments.append(
                Argument(
                    operator,
                    chip,
                    shapes == "dynamic",
                    direction == "out",
                    name,
                    need == "required",
                    layout == "contiguous",
                    dtypes,
                    formats,
                )
            )
        return arguments

    def launch(self, operator: str, chip: str, dtype: str, shapes: Shapes, cores: int | None = None) -> Launch:
        """Return the tiling for `cores` vector cores (default: those of the chip). shapes: of the inputs. Raises TilingError."""
        soc, chip_cores = SOCS[chip]
        tiling, blocks, workspace = Tiling(), ctypes.c_int64(), ctypes.c_int64()
        written = self._library.tile(
            operator.encode(),
            soc.encode(),
            ctypes.c_uint32(cores or chip_cores),
            _packed(shapes),
            TYPES[dtype],
            ctypes.byref(tiling),
            ctypes.byref(blocks),
            ctypes.byref(workspace),
        )
        if written != ctypes.sizeof(Tiling):
            raise TilingError(f"{operator} on {chip}: shapes {shapes}")
        return Launch(tiling, blocks.value, workspace.value)

    def infer(self, operator: str, dtype: str, shapes: Shapes) -> tuple[tuple[int, ...], str]:
        """Return shape and dtype of an operator's output; -1 is a size that is not known yet. Raises TilingError."""
        out = (ctypes.c_int64 * (2 + _AXES))()  # number of axes, sizes, dtype
        if self._library.infer(operator.encode(), _packed(shapes), TYPES[dtype], out):
            raise TilingError(f"{operator}: shapes {shapes}")
        return tuple(out[1 : 1 + out[0]]), _NAMES[out[1 + _AXES]]

    def traffic(
        self, operator: str, chip: str, dtype: str, shapes: Shapes, read: int, cores: int | None = None
    ) -> tuple[int, int]:
        """Return the bytes that an operator moves under its tiling, and the fewest possible. read: rows with an index >= 0."""
        soc, chip_cores = SOCS[chip]
        moved_bytes, least_bytes = ctypes.c_int64(), ctypes.c_int64()
        self._library.traffic(
            operator.encode(),
            soc.encode(),
            ctypes.c_uint32(cores or chip_cores),
            _packed(shapes),
            TYPES[dtype],
            ctypes.c_int64(read),
            ctypes.byref(moved_bytes),
            ctypes.byref(least_bytes),
        )
        return moved_bytes.value, least_bytes.value


def compile_host(project: Path = PROJECT, folder: Path | None = None) -> Path:
    """Compile the host sides of `project` to a shared library in `folder` (None for `library.cache_folder`)."""
    return compile_harness("host.cpp", {}, project, folder)


@cache
def shipped_host() -> OpHost:
    """Return the host sides of the Ascend C operators as shipped, loaded once."""
    return OpHost()


def _packed(shapes: Shapes) -> ctypes.Array:
    """Return the shapes of the inputs as host.cpp takes them: for each, its number of axes, -1 if it is absent, and its sizes."""
    packed = ((ctypes.c_int64 * (1 + _AXES)) * _INPUTS)()
    for i in range(_INPUTS):
        shape = shapes[i] if i < len(shapes) else None
        packed[i][0] = -1 if shape is None else len(shape)
        for axis, size in enumerate((shape or ())[:_AXES]):
            packed[i][1 + axis] = size
    return packed
