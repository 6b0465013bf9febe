"""Search for NaN and infinity, by tensor, layer and expert: in every array as it is written, and in a network after a bad step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pangu_sigma.checkpoint.lazy import chunks
from pangu_sigma.checkpoint.parts import EXPERTS, Files, SavedArray

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


def find_not_finite(files: Files) -> list[NotFinite]:
    """Return the arrays that hold NaN or infinity, in the order of the files and by name."""
    arrays = ((file, name, arrays[name]) for file, arrays in files.items() for name in sorted(arrays))
    return [result for array in arrays if (result := _examine(*array))]


def _examine(file: str, name: str, array: SavedArray) -> NotFinite | None:
    part, values = array
    count, index, experts = 0, tuple[int, ...](), set[int]()
    for first, chunk in chunks(values):
        positions = first + not_finite_positions(chunk)
        if not len(positions):
            continue
        rows, *others = np.unravel_index(positions, values.shape or (1,))
        numbers = part.numbers()[rows] if values.shape else rows
        if values.shape and not count:
            columns = (int(column[0]) + offset for column, offset in zip(others, part.offset, strict=True))
            index = (int(numbers[0]), *columns)
        count += len(positions)
        experts.update(np.unique(numbers).tolist() if file.startswith(EXPERTS) else ())
    return NotFinite(file, name, count, index, tuple(sorted(experts))) if count else None


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


def not_finite_positions(values: np.ndarray) -> np.ndarray:
    """Return the positions of NaN and infinity in a flat array. A uint16 array holds the bits of bfloat16, which NumPy lacks."""
    if values.dtype == np.uint16:
        return np.flatnonzero((values & _EXPONENT) == _EXPONENT)
    if values.dtype.kind != "f":
        return np.empty(0, np.int64)
    with np.errstate(all="ignore"):
        # The sum is not finite if a value is not; large values may also overflow it, so then each is looked at.
        healthy = np.isfinite(values.sum(dtype=np.promote_types(values.dtype, np.float32)))
    return np.empty(0, np.int64) if healthy else np.flatnonzero(~np.isfinite(values))
