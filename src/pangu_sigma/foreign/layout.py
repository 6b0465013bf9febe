"""Conversion of tensors in files of other projects to a `DenseModel`, shared by all layouts.

A layout maps each of its tensors to one of ours; this module refuses a missing or unknown tensor on either side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tokenize import TokenError

import numpy as np

from pangu_sigma.foreign.dense_model import MIXED, Activation, DenseModel, LayoutError, Unused, tensor_shapes
from pangu_sigma.foreign.file_tensors import FileTensor, Joined
from pangu_sigma.foreign.names import Counterpart


@dataclass
class Facts:
    """Properties of another project's dense model that its tensors do not show. heads: None if unknown.

    said: sizes that the files state, to compare with the tensors: field of `DenseModel` → (name in the file, value).
    """

    heads: int | None = None
    activation: Activation = "tanh"
    activation_known: bool = False
    vocabulary: int | None = None
    said: dict[str, tuple[str, int]] = field(default_factory=dict)


def dense_model_of(
    path: Path,
    layout: str,
    sources: Mapping[str, Joined],
    rules: Mapping[str, Counterpart],
    facts: Facts,
    unused: list[Unused],
) -> DenseModel:
    """Build a dense model from tensors of another project. sources: tensors by name. rules: counterpart of each name. unused:
    entries of the files that are no weights. Raises LayoutError for a missing or unknown tensor, and for a wrong shape or type."""
    for name in sources:
        if name not in rules:
            raise LayoutError(f"{path}: {name[:120]} is no tensor of PanGu-α ({layout}): these are of another model")
    tensors, made_from, kinds = {}, {}, {}
    for name, rule in rules.items():
        if name not in sources:
            raise LayoutError(f"{path}: {name} is missing ({rule.ours}); take the whole release")
        source, rows = sources[name], facts.vocabulary
        shape = source.shape
        if rule.ours == "embedding" and rows is not None and len(shape) == 2 and rows < shape[0]:
            source = _first_rows(source, rows)
            unused.append(Unused(f"{name}, rows from {rows}", f"padding of the vocabulary: {shape[0]} rows"))
        if rule.transposed and len(shape) != 2:
            raise LayoutError(f"{path}: {name} is of shape {shape}, and must have two axes; {MIXED}")
        tensors[rule.ours] = source.assembled(rule.ours, rule.transposed)
        files = len({part.file for part in source.parts})
        how = [f"joined from {files} files"] if files > 1 else []
        how += ["transposed"] if rule.transposed else []
        made_from[rule.ours] = f"{source.parts[0].name}: {', '.join(how) or 'copied'}"
        kinds[rule.ours] = source.kind
    return replace(_checked(path, layout, tensors, made_from, facts, unused), kinds=kinds)


def _first_rows(table: Joined, rows: int) -> Joined:
    """Return the first rows of a table."""
    parts = [
        replace(part, values=part.values[: rows - part.corner[0]]) for part in table.parts if part.corner[0] < rows
    ]
    return replace(table, shape=(rows, table.shape[1]), parts=parts)


def _checked(path: Path, layout: str, tensors: dict, made_from: dict, facts: Facts, unused: list[Unused]) -> DenseModel:
    for tensor in (tensors["embedding"], tensors["positions"], tensors["layers.0.ffn.w1"]):
        if tensor.ndim != 2 or 0 in tensor.shape:
            raise LayoutError(f"{path}: {tensor.origin} is of shape {tensor.shape}, and must be a table; it is damaged")
    vocabulary, hidden = tensors["embedding"].shape
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("layers."))
    model = DenseModel(
        path=path,
        layout=layout,
        hidden=hidden,
        ffn=tensors["layers.0.ffn.w1"].shape[0],
        heads=facts.heads,
        layers=layers,
        seq_length=tensors["positions"].shape[0],
        vocabulary=vocabulary,
        activation=facts.activation,
        activation_known=facts.activation_known,
        tensors=tensors,
        made_from=made_from,
        unused=unused,
    )
    if model.heads is not None and (model.heads < 1 or hidden % model.heads):
        raise LayoutError(f"{path}: {model.heads} heads do not divide a hidden size of {hidden}; give the right heads")
    for name, shape in tensor_shapes(hidden, model.ffn, layers, model.seq_length, vocabulary).items():
        found = tensors[name]
        if found.shape != shape:
            raise LayoutError(
                f"{path}: {found.origin or name} is of shape {found.shape}, {name} must be {shape}; {MIXED}"
            )
    for name, (key, value) in facts.said.items():
        if getattr(model, name) != value:
            raise LayoutError(
                f"{path}: its tensors are of a model with {name}={getattr(model, name)}, {key} says {value}; {MIXED}"
            )
    return model


def plain_name(path: Path, name: object, what: str) -> Path:
    """Return the path of the file `name` of a folder. what: what names it, for messages. Raises LayoutError without such a file."""
    if not isinstance(name, str) or not name or name in (".", "..") or set(name) & set("/\\\0:") or len(name) > 255:
        raise LayoutError(f"{path}: {what} is {str(name)[:80]!r}, no name of a file in this folder; download it again")
    if not (path / name).exists():
        raise LayoutError(f"{path}: {what} is {name}, which is not there; take the whole release")
    return path / name


def npy_source(file: Path) -> Joined:
    """Open the array of an .npy file without running code in its header. Raises LayoutError unless it has floats in C order."""
    try:
        array = np.lib.format.open_memmap(file, mode="r")
    except (
        ValueError,
        SyntaxError,
        TypeError,
        EOFError,
        ArithmeticError,
        RecursionError,
        MemoryError,
        TokenError,
    ) as error:
        raise LayoutError(f"{file}: no array of NumPy, or cut short ({str(error)[:80]}); download it again") from None
    dtype, fortran = array.dtype, not array.flags.c_contiguous
    if fortran or dtype.name not in ("float32", "float16") or dtype.byteorder == ">":
        raise LayoutError(
            f"{file}: it holds {dtype}{' in Fortran order' if fortran else ''}; convert it to float32 or float16 in C order"
        )
    return Joined.only(FileTensor(file, file.name, dtype.name, array))
