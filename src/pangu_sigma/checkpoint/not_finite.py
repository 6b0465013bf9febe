"""Search for NaN and infinity, by tensor, layer and expert: in every array as it is written, and in a network after a bad step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pangu_sigma.checkpoint.parts import EXPERTS, Files, SavedArray
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
        """Number of the experts' segment over all RRE layers: with one segment, the layer; None for dense arrays."""
        return int(self.file.removeprefix(EXPERTS).partition(".")[0]) if self.file.startswith(EXPERTS) else None


class Watch:
    """Search for NaN and infinity in the arrays of one file, chunk by chunk, such as while it is written."""

    def __init__(self, file: str, arrays: dict[str, SavedArray]):
        self._file, self._arrays = file, arrays
        self._by_name: dict[str, NotFinite] = {}

    def see(self, name: str, first: int, values: np.ndarray) -> None:
        """Examine a chunk of an array. first: position of its first value in the flattened array."""
        positions = first + _not_finite(values)
        if not len(positions):
            return
        part, array = self._arrays[name]
        rows, *others = np.unravel_index(positions, array.shape or (1,))
        numbers = part.numbers()[rows] if array.shape else rows
        columns = [int(index[0]) + offset for index, offset in zip(others, part.offset, strict=True)]
        index = (int(numbers[0]), *columns) if array.shape else ()
        before = self._by_name.get(name) or NotFinite(self._file, name, 0, index)
        experts = {*before.experts, *np.unique(numbers).tolist()} if self._file.startswith(EXPERTS) else ()
        count = before.count + len(positions)
        self._by_name[name] = replace(before, count=count, experts=tuple(sorted(experts)))

    @property
    def not_finite(self) -> list[NotFinite]:
        """Arrays that hold NaN or infinity, by name."""
        return [self._by_name[name] for name in sorted(self._by_name)]


def find_not_finite(files: Files) -> list[NotFinite]:
    """Return the arrays that hold NaN or infinity, in the order of the files and by name."""
    not_finite = []
    for file, arrays in files.items():
        watch = Watch(file, arrays)
        for name, array in arrays.items():
            for first, values in chunks(array.values):
                watch.see(name, first, values)
        not_finite += watch.not_finite
    return not_finite


def describe(not_finite: Sequence[NotFinite], config: dict[str, Any]) -> list[str]:
    """Return texts for a message on arrays with NaN or infinity: tensors, layers, experts with their domains, and counts.

    config: the configuration as a plain tree (`Identity.config`), which names the domains.
    """
    more = [f"and {len(not_finite) - _NAMED} more"] if len(not_finite) > _NAMED else []
    return [_describe(array, config) for array in not_finite[:_NAMED]] + more


def _describe(array: NotFinite, config: dict[str, Any]) -> str:
    at = f", first at [{', '.join(map(str, array.first))}]" if array.first else ""
    text, model = f"{array.file}: {array.name} has {array.count}{at}", config.get("model", {})
    if array.segment is None:
        return text
    segments = model.get("segments", ["own"])
    layer, s = divmod(array.segment, len(segments))
    where = f"layer {layer}" + (f", {segments[s]} segment {s}" if len(segments) > 1 else "")
    names = [domain["name"] for domain in config.get("domains", []) for _ in range(model.get("experts_per_domain", 0))]
    names = [f" of domain {name}" for name in names] if segments[s] == "own" else []
    experts = [f"{expert}{''.join(names[expert : expert + 1])}" for expert in array.experts[:_NAMED]]
    more = f" and {len(array.experts) - _NAMED} more" if len(array.experts) > _NAMED else ""
    return f"{text} ({where}, {'expert' if len(array.experts) == 1 else 'experts'} {', '.join(experts)}{more})"


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
