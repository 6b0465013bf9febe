"""Search for NaN and infinity, by tensor, layer and expert: in every array as it is written, and in a network after a bad step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pangu_sigma.checkpoint.parts import EXPERTS, Files, Part, SavedArray
from pangu_sigma.checkpoint.safetensors_file import chunks

_EXPONENT = np.uint16(0x7F80)
"""Exponent bits of a bfloat16: all of them are set in NaN and infinity, and in no other value."""
_NAMED = 8
"""Number of experts, and of tensors, that a message names one by one."""


@dataclass(frozen=True)
class NotFinite:
    """Array of a checkpoint's file that holds NaN or infinity.

    file: name of the file, without its ending. name: name of the array. count: number of NaN and infinite values.
    first: index of the first such value in the whole array, of which the file may hold a part; () for a scalar.
    experts: numbers of the experts that have such values, ascending; () for an array of dense parameters.
    """

    file: str
    name: str
    count: int
    first: tuple[int, ...]
    experts: tuple[int, ...] = ()

    @property
    def segment(self) -> int | None:
        """Number of the experts' segment among those of all RRE layers: with one segment, the layer; None for dense arrays."""
        return int(self.file.removeprefix(EXPERTS).partition(".")[0]) if self.file.startswith(EXPERTS) else None


class Watch:
    """Search for NaN and infinity in the arrays of one file, chunk by chunk, such as while it is written."""

    def __init__(self, file: str, arrays: dict[str, SavedArray]):
        self._file, self._arrays = file, arrays
        self._found: dict[str, NotFinite] = {}

    def see(self, name: str, first: int, values: np.ndarray) -> None:
        """Examine a chunk of an array. first: position of its first value in the flattened array."""
        positions = first + _not_finite(values)
        if not len(positions):
            return
        part, whole = self._arrays[name]
        before = self._found.get(name) or NotFinite(self._file, name, 0, _index(part, whole.shape, int(positions[0])))
        experts = set(before.experts)
        if self._file.startswith(EXPERTS):
            experts |= {*part.numbers()[np.unique(positions // max(1, math.prod(whole.shape[1:])))].tolist()}
        self._found[name] = replace(before, count=before.count + len(positions), experts=tuple(sorted(experts)))

    @property
    def found(self) -> list[NotFinite]:
        """Arrays that hold NaN or infinity, by name."""
        return [self._found[name] for name in sorted(self._found)]


def _index(part: Part, shape: tuple[int, ...], position: int) -> tuple[int, ...]:
    """Return the index in the whole array of a position in a flattened part of a shape."""
    if not shape:
        return ()
    row, *rest = np.unravel_index(position, shape)
    return int(part.numbers()[row]), *(int(i) + offset for i, offset in zip(rest, part.offset, strict=True))


def find_not_finite(files: Files) -> list[NotFinite]:
    """Return the arrays that hold NaN or infinity, in the order of the files and by name."""
    found = []
    for file, arrays in files.items():
        watch = Watch(file, arrays)
        for name, array in arrays.items():
            for first, values in chunks(array.values):
                watch.see(name, first, values)
        found += watch.found
    return found


def describe(found: Sequence[NotFinite], config: dict[str, Any]) -> list[str]:
    """Return texts for a message on arrays with NaN or infinity: tensors, layers, experts with their domains, and counts.

    config: the configuration as a plain tree (`Identity.config`), which names the domains.
    """
    more = [f"and {len(found) - _NAMED} more"] if len(found) > _NAMED else []
    return [_describe(each, config) for each in found[:_NAMED]] + more


def _describe(found: NotFinite, config: dict[str, Any]) -> str:
    at = f", first at [{', '.join(map(str, found.first))}]" if found.first else ""
    text, model = f"{found.file}: {found.name} has {found.count}{at}", config.get("model", {})
    if found.segment is None:
        return text
    segments = model.get("segments", ["own"])
    layer, s = divmod(found.segment, len(segments))
    where = f"layer {layer}" + (f", {segments[s]} segment {s}" if len(segments) > 1 else "")
    names = [each["name"] for each in config.get("domains", []) for _ in range(model.get("experts_per_domain", 0))]
    names = [f" of domain {name}" for name in names] if segments[s] == "own" else []
    experts = [f"{expert}{''.join(names[expert : expert + 1])}" for expert in found.experts[:_NAMED]]
    more = f" and {len(found.experts) - _NAMED} more" if len(found.experts) > _NAMED else ""
    return f"{text} ({where}, {'expert' if len(found.experts) == 1 else 'experts'} {', '.join(experts)}{more})"


def _not_finite(values: np.ndarray) -> np.ndarray:
    """Return the positions of NaN and infinity. Arrays of uint16 are bfloat16, which NumPy lacks (ecss/store.py)."""
    if values.dtype == np.uint16:
        return np.flatnonzero((values & _EXPONENT) == _EXPONENT)
    if values.dtype.kind != "f":
        return np.empty(0, np.int64)
    with np.errstate(all="ignore"):
        # The sum is not finite if a value is not; large values may also overflow it, so then each is looked at.
        healthy = np.isfinite(values.sum(dtype=np.promote_types(values.dtype, np.float32)))
    return np.empty(0, np.int64) if healthy else np.flatnonzero(~np.isfinite(values))
