"""Search for NaN and infinity in saved arrays: every float array is examined as it is written, by tensor, layer and expert."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pangu_sigma.checkpoint.parts import EXPERTS, SavedArray
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
    """Search for NaN and infinity in the arrays of one file while it is written, chunk by chunk. found: arrays that hold some."""

    def __init__(self, file: str, arrays: dict[str, SavedArray]):
        self._file, self._arrays = file, arrays
        self._counts: dict[str, int] = {}
        self._first: dict[str, int] = {}
        self._rows: dict[str, set[int]] = {}

    def see(self, name: str, first: int, values: np.ndarray) -> None:
        """Examine a chunk of an array. first: position of its first value in the flattened array."""
        positions = _not_finite(values)
        if len(positions):
            self._counts[name] = self._counts.get(name, 0) + len(positions)
            self._first.setdefault(name, first + int(positions[0]))
            row = max(1, math.prod(self._arrays[name].values.shape[1:]))
            self._rows.setdefault(name, set()).update(np.unique((first + positions) // row).tolist())

    @property
    def found(self) -> list[NotFinite]:
        return [
            NotFinite(self._file, name, count, self._index(name), self._experts(name))
            for name, count in sorted(self._counts.items())
        ]

    def _index(self, name: str) -> tuple[int, ...]:
        part, values = self._arrays[name]
        if not values.ndim:
            return ()
        row, *rest = np.unravel_index(self._first[name], values.shape)
        return int(part.numbers()[row]), *(int(i) + offset for i, offset in zip(rest, part.offset, strict=True))

    def _experts(self, name: str) -> tuple[int, ...]:
        if not self._file.startswith(EXPERTS):
            return ()
        numbers = self._arrays[name].part.numbers()
        return tuple(int(numbers[row]) for row in sorted(self._rows[name]))


def count_not_finite(values: np.ndarray) -> int:
    """Count the NaN and infinite values of an array."""
    return sum(len(_not_finite(chunk)) for _, chunk in chunks(values))


def describe(found: Iterable[NotFinite], config: dict[str, Any]) -> str:
    """Describe arrays with NaN or infinity for a message: tensors, layers, experts with their domains, and counts.

    config: the configuration as a plain tree (`Identity.config`), which names the domains.
    """
    texts = [_describe(each, config) for each in found]
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return "; ".join(texts[:_NAMED]) + more


def _describe(found: NotFinite, config: dict[str, Any]) -> str:
    at = f", first at [{', '.join(map(str, found.first))}]" if found.first else ""
    text = f"{found.file}.safetensors: {found.name} has {found.count}{at}"
    if found.segment is None:
        return text
    segments = config.get("model", {}).get("segments", ["own"])
    layer, s = divmod(found.segment, len(segments))
    where = f"layer {layer}" + (f", {segments[s]} segment {s}" if len(segments) > 1 else "")
    own = segments[s] == "own"
    names = [f"{expert}{_domain(expert, config) if own else ''}" for expert in found.experts[:_NAMED]]
    more = f" and {len(found.experts) - _NAMED} more" if len(found.experts) > _NAMED else ""
    return f"{text} ({where}, {'expert' if len(found.experts) == 1 else 'experts'} {', '.join(names)}{more})"


def _domain(expert: int, config: dict[str, Any]) -> str:
    """Return the domain of an expert as text; "" if the configuration does not say."""
    size, domains = config.get("model", {}).get("experts_per_domain", 0), config.get("domains", [])
    return f" of domain {domains[expert // size]['name']}" if size and expert // size < len(domains) else ""


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
