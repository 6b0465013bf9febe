"""Parts of a checkpoint's arrays: several ranks write a whole array together, and other ranks may read it divided differently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, cast

import numpy as np
from pydantic import Field, TypeAdapter

from pangu_sigma.checkpoint.lazy import AnyArray, release_pages
from pangu_sigma.sealed import DamagedFile

WEIGHTS = "dense"
"""Name of the shard of the dense parameters."""
EXPERTS = "experts_layer_"
"""Prefix of the names of the expert shards, one per segment of the RRE layers, which hold Adam state too."""
ROWS = "rows_"
"""Prefix of the names of the shards of rows, one per entry of `model.rows`: of the rows that a token met, ascending by key, with
Adam state."""
OPTIMIZER, LOSS_SCALE = "dense_optimizer", "loss_scale"
"""Names of the shards of the dense parameters' Adam state, and of the loss scale."""

Count = Annotated[int, Field(ge=0, lt=1 << 48)]
"""Number of rows or columns, or the index of a row or column."""


@dataclass(frozen=True)
class Part:
    """Position of a saved array in the whole array: rows of the first axis, and an interval of each other axis.

    Such a part holds the experts of a rank, a slice of a matrix, or the whole array.

    whole: shape of the whole array. rows: intervals (first, end) of the first axis, ascending. offset: first index on each other
    axis; the saved array's shape gives the length.
    """

    whole: tuple[Count, ...]
    rows: tuple[tuple[Count, Count], ...]
    offset: tuple[Count, ...]

    @classmethod
    def everything(cls, shape: tuple[int, ...]) -> Part:
        """Return the part that covers a whole array of this shape."""
        return cls(shape, ((0, shape[0]),) if shape else (), (0,) * (len(shape) - 1))

    @classmethod
    def of_rows(cls, shape: tuple[int, ...], rows: np.ndarray) -> Part:
        """Return the part with these rows, ascending, of an array of `shape`."""
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        return cls(shape, tuple((int(run[0]), int(run[-1]) + 1) for run in runs), (0,) * (len(shape) - 1))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return True if a saved array of this shape can be this part."""
        if not self.whole or len(shape) != len(self.whole) or len(self.offset) != len(shape) - 1:
            return shape == self.whole and not self.rows and not self.offset
        ends = [0, *(number for run in self.rows for number in run), self.whole[0]]
        boxes = zip(self.offset, shape[1:], self.whole[1:], strict=True)
        return (
            ends == sorted(ends)
            and sum(end - first for first, end in self.rows) == shape[0]
            and all(first >= 0 and first + length <= end for first, length, end in boxes)
        )

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


def encode_parts(parts: dict[str, Part]) -> str:
    """Return the parts (`Part`) of a file's arrays, by array name, as JSON for the file's metadata."""
    return _PARTS_BY_NAME.dump_json(parts).decode()


def decode_parts(text: str) -> dict[str, Part]:
    """Parse the JSON of `encode_parts` into parts by array name. Raises DamagedFile for any other text."""
    try:
        return _PARTS_BY_NAME.validate_json(text, strict=True)
    except ValueError as error:
        raise DamagedFile(f"parts of arrays are not what was written: {text[:100]!r}; the file is damaged") from error


def copy_part(saved: SavedArray, target: np.ndarray, wanted: Part, after_row: Callable[[], None] = lambda: None) -> int:
    """Copy the elements that a saved array and `target` share, so that a row of a mapped file, or _BLOCK bytes, are in memory.

    wanted: part of the same whole array that `target` holds. after_row: called after each row, or _BLOCK bytes of smaller ones.
    Returns the number of elements copied.
    """
    part, value = saved
    if not part.whole:
        target[...] = value
        return 1
    source, goal, box = list[Any](), list[Any](), 1
    for theirs, length, ours, room in zip(part.offset, value.shape[1:], wanted.offset, target.shape[1:], strict=True):
        first, end = max(theirs, ours), min(theirs + length, ours + room)
        if end <= first:
            return 0
        source.append(slice(first - theirs, end - theirs))
        goal.append(slice(first - ours, end - ours))
        box *= end - first
    _, rows, targets = np.intersect1d(part.numbers(), wanted.numbers(), assume_unique=True, return_indices=True)
    size = max(1, _BLOCK // max(1, box * value.itemsize))
    for first in range(0, len(rows), size):
        if size == 1:
            target[targets[first], *goal] = value[rows[first], *source]  # a view: a row may be large
        else:
            target[targets[first : first + size], *goal] = value[rows[first : first + size], *source]
        release_pages(value)
        after_row()
    return len(rows) * box
