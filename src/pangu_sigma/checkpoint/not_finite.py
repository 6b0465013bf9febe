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
    results = [_examine(file, name, arrays[name]) for file, arrays in files.items() for name in sorted(arrays)]
    return [result for result in results if result is not None]


def _examine(file: str, name: str, array: SavedArray) -> NotFinite | None:
    """Count and locate NaN and infinity in an array of a file; return None if all its values are finite."""
    part, values = array
    count, first_index, experts = 0, tuple[int, ...](), set[int]()
    for start, chunk in chunks(values):
        positions = start + not_finite_positions(chunk)
        if not len(positions):
            continue
        rows, *columns = np.unravel_index(positions, values.shape or (1,))
        whole_rows = part.numbers()[rows] if values.shape else rows  # in the whole array: for experts, their numbers
        if values.shape and not count:
            whole_columns = (int(column[0]) + offset for column, offset in zip(columns, part.offset, strict=True))
            first_index = (int(whole_rows[0]), *whole_columns)
        count += len(positions)
        experts.update(np.unique(whole_rows).tolist() if file.startswith(EXPERTS) else ())
    return NotFinite(file, name, count, first_index, tuple(sorted(experts))) if count else None


def describe(not_finite: Sequence[NotFinite], config: dict[str, Any]) -> list[str]:
    """Return texts for a message on arrays with NaN or infinity: tensors, layers, experts with their domains, and counts.

    config: the configuration as a plain tree (`Identity.config`), which names the domains.
    """
    more = [f"and {len(not_finite) - _NAMED} more"] if len(not_finite) > _NAMED else []
    return [_text_of(array, config) for array in not_finite[:_NAMED]] + more


def _text_of(array: NotFinite, config: dict[str, Any]) -> str:
    """Return the text of one array for `describe`. For experts it names the RRE layer, the segment and the domain of each expert;
    common experts belong to no domain."""
    first = f", first at [{', '.join(map(str, array.first))}]" if array.first else ""
    text, model = f"{array.file}: {array.name} has {array.count}{first}", config.get("model", {})
    if array.segment is None:  # dense parameters
        return text
    kinds = model.get("segments", ["own"])  # of the segments of a layer
    layer, segment = divmod(array.segment, len(kinds))
    place = f"layer {layer}" + (f", {kinds[segment]} segment {segment}" if len(kinds) > 1 else "")
    names = [domain["name"] for domain in config.get("domains", []) for _ in range(model.get("experts_per_domain", 0))]
    owners = {n: f" of domain {name}" for n, name in enumerate(names)} if kinds[segment] == "own" else {}
    experts = [f"{expert}{owners.get(expert, '')}" for expert in array.experts[:_NAMED]]
    more = f" and {len(array.experts) - _NAMED} more" if len(array.experts) > _NAMED else ""
    return f"{text} ({place}, {'expert' if len(array.experts) == 1 else 'experts'} {', '.join(experts)}{more})"


def not_finite_positions(values: np.ndarray) -> np.ndarray:
    """Return the positions of NaN and infinity in a flat array. A uint16 array holds the bits of bfloat16, which NumPy lacks."""
    if values.dtype == np.uint16:
        return np.flatnonzero((values & _EXPONENT) == _EXPONENT)
    if values.dtype.kind != "f":
        return np.empty(0, np.int64)
    with np.errstate(all="ignore"):
        # the sum is not finite if a value is not; large values may also overflow it, so then every value is examined
        healthy = np.isfinite(values.sum(dtype=np.promote_types(values.dtype, np.float32)))
    return np.empty(0, np.int64) if healthy else np.flatnonzero(~np.isfinite(values))
