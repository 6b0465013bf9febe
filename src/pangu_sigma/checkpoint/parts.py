"""Parts of a checkpoint's arrays: several ranks write a whole array together, and other ranks may read it divided differently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from pydantic import TypeAdapter

from pangu_sigma.checkpoint.lazy import AnyArray, release_pages

WEIGHTS = "dense"
"""Name of the shard of the dense parameters."""
EXPERTS = "experts_layer_"
"""Prefix of the names of the expert shards, one per segment of the RRE layers, which hold Adam state too."""
ROWS = "rows_"
"""Prefix of the names of the shards of rows, one per entry of `model.rows`: of the rows that a token met, ascending by key, with
Adam state."""
OPTIMIZER, LOSS_SCALE = "dense_optimizer", "loss_scale"
"""Names of the shards of the dense parameters' Adam state, and of the loss scale."""


@dataclass(frozen=True)
class Part:
    """Position of a saved array, such as the experts of a rank or a slice of a matrix, in the whole array: rows of the first axis,
    and an interval of each other axis.

    whole: shape of the whole array. rows: intervals (first, end) of the first axis, ascending. offset: first index on each other
    axis; the saved array's shape gives the length.
    """

    whole: tuple[int, ...]
    rows: tuple[tuple[int, int], ...]
    offset: tuple[int, ...]

    @classmethod
    def everything(cls, shape: tuple[int, ...]) -> Part:
        """Return the part that covers a whole array of this shape."""
        return cls(shape, ((0, shape[0]),) if shape else (), (0,) * (len(shape) - 1))

    @classmethod
    def of_rows(cls, shape: tuple[int, ...], rows: np.ndarray) -> Part:
        """Return the part with these rows, ascending, of an array of `shape`."""
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        return cls(shape, tuple((int(run[0]), int(run[-1]) + 1) for run in runs), (0,) * (len(shape) - 1))

    def numbers(self) -> np.ndarray:
        """Return the index of each row of the part in the whole array."""
        return np.concatenate([np.arange(first, end) for first, end in self.rows])


class SavedArray(NamedTuple):
    """Array in a checkpoint's file. part: its part of the whole array. values: the array; a LazyArray only for writing."""

    part: Part
    values: np.ndarray

    @classmethod
    def whole(cls, values: AnyArray) -> SavedArray:
        """Wrap an array that is not divided."""
        return cls(Part.everything(values.shape), cast(np.ndarray, values))

    @property
    def is_whole(self) -> bool:
        return self.values.shape == self.part.whole


Files = dict[str, dict[str, SavedArray]]
"""Arrays of a checkpoint: file name without its ending → name of the array → array."""

_BLOCK = 1 << 20
"""Bytes of small rows that are copied together: each release of mapped memory takes a microsecond or more."""
_PARTS_BY_NAME = TypeAdapter(dict[str, Part])
_PARTS_KEY = "parts"


def parts_metadata(arrays: dict[str, SavedArray]) -> dict[str, str]:
    """Return the metadata of a file with these arrays: the part of each array, as JSON; whole arrays are not listed."""
    parts = {name: array.part for name, array in arrays.items() if not array.is_whole}
    return {_PARTS_KEY: _PARTS_BY_NAME.dump_json(parts).decode()} if parts else {}


def parts_from(metadata: dict[str, str]) -> dict[str, Part]:
    """Parse the metadata that `parts_metadata` wrote into parts by array name. Raises ValueError for other contents."""
    return _PARTS_BY_NAME.validate_json(metadata.get(_PARTS_KEY, "{}"), strict=True)


def copy_part(
    saved: SavedArray, target: np.ndarray, target_part: Part, after_row: Callable[[], None] = lambda: None
) -> None:
    """Copy the elements that a saved array and `target` share. At most one row, or _BLOCK bytes of small rows, of a mapped file
    are in memory at a time.

    target_part: the part of the same whole array that `target` stores. after_row: called after each row, or _BLOCK bytes of rows.
    """
    part, values = saved
    if not part.whole:  # a scalar
        target[...] = values
        return
    # on each axis but the first, the indices of the shared interval in `values` and in `target`
    saved_columns, target_columns, row_size = list[Any](), list[Any](), 1
    axes = zip(part.offset, values.shape[1:], target_part.offset, target.shape[1:], strict=True)
    for saved_offset, saved_length, target_offset, target_length in axes:
        first, end = max(saved_offset, target_offset), min(saved_offset + saved_length, target_offset + target_length)
        if end <= first:
            return  # nothing is shared
        saved_columns.append(slice(first - saved_offset, end - saved_offset))
        target_columns.append(slice(first - target_offset, end - target_offset))
        row_size *= end - first
    rows, target_rows = np.intersect1d(part.numbers(), target_part.numbers(), True, return_indices=True)[1:]
    count = max(1, _BLOCK // max(1, row_size * values.itemsize))  # of rows that are copied together
    for first in range(0, len(rows), count):
        group: Any = first if count == 1 else slice(first, first + count)  # the index of one row makes no copy of it
        target[target_rows[group], *target_columns] = values[rows[group], *saved_columns]
        release_pages(values)
        after_row()
