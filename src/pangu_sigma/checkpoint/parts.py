"""Parts of arrays: several ranks write a whole array together, and other ranks may read it divided in another way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple, cast

import numpy as np

from pangu_sigma.checkpoint.lazy import AnyArray
from pangu_sigma.checkpoint.mapped_file import release_pages
from pangu_sigma.sealed import DamagedFile

WEIGHTS = "dense"
"""Shard of the dense parameters."""
EXPERTS = "experts_layer_"
"""Beginning of the names of the shards of the experts, one a layer, with their Adam state."""
OPTIMIZER, LOSS_SCALE = "dense_optimizer", "loss_scale"
"""Shards of the dense parameters' Adam state, and of the loss scale."""

_MOST = 1 << 48
"""Rows and columns stay below it."""


@dataclass(frozen=True)
class Part:
    """The part of a whole array that another array is: some rows, and a box of each.

    It may be the experts of a rank, a slice of a matrix, or everything.

    whole: shape of the whole array.
    rows: runs (first, end) of its first axis, ascending.
    offset: first index of each other axis; the array's own shape says how far it goes.
    """

    whole: tuple[int, ...]
    rows: tuple[tuple[int, int], ...]
    offset: tuple[int, ...]

    @classmethod
    def everything(cls, shape: tuple[int, ...]) -> Part:
        """All of an array of this shape."""
        return cls(shape, ((0, shape[0]),) if shape else (), (0,) * (len(shape) - 1))

    @classmethod
    def of_rows(cls, shape: tuple[int, ...], rows: np.ndarray) -> Part:
        """The rows with these numbers, ascending, of an array of `shape`."""
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        return cls(shape, tuple((int(run[0]), int(run[-1]) + 1) for run in runs), (0,) * (len(shape) - 1))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """True if an array of this shape can be this part."""
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
        """The number that each row of the part has in the whole array."""
        return np.concatenate([np.arange(first, end) for first, end in self.rows])


class SavedArray(NamedTuple):
    """An array of a file, and the part of the whole array that it is.

    values: of what is to be written it may be a LazyArray, which has its shape, dtype and chunks; what was read is never one.
    """

    part: Part
    values: np.ndarray

    @classmethod
    def whole(cls, values: AnyArray) -> SavedArray:
        """An array that is not divided."""
        return cls(Part.everything(values.shape), cast(np.ndarray, values))

    @property
    def is_whole(self) -> bool:
        return self.values.shape == self.part.whole


Files = dict[str, dict[str, SavedArray]]
"""Arrays by the file that they are in, without its ending, and by their name."""


def encode_parts(parts: dict[str, Part]) -> str:
    """The parts as text, for a file's metadata."""
    return json.dumps({name: asdict(part) for name, part in parts.items()})


def decode_parts(text: str) -> dict[str, Part]:
    """The parts that `encode_parts` wrote as text. Raises DamagedFile for any other text."""
    try:
        return {
            name: Part(_numbers(part["whole"]), tuple(_run(run) for run in part["rows"]), _numbers(part["offset"]))
            for name, part in json.loads(text).items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"parts of arrays are not what was written: {text[:100]!r}; the file is damaged") from error


def _numbers(values: list[int]) -> tuple[int, ...]:
    if not all(type(value) is int and 0 <= value < _MOST for value in values):
        raise ValueError("no shape or offset")
    return tuple(values)


def _run(values: list[int]) -> tuple[int, int]:
    first, end = _numbers(values)
    if end < first:
        raise ValueError("a run that ends before it begins")
    return first, end


def copy_part(saved: SavedArray, target: np.ndarray, wanted: Part, after_row: Callable[[], None] = lambda: None) -> int:
    """Copy what a saved array has of `target`, row by row, keeping no more than a row of a mapped file in memory.

    wanted: the part of the same whole array that `target` is.
    after_row: called after each row.
    Returns how many elements were copied.
    """
    part, value = saved
    if not part.whole:
        target[...] = value
        return 1
    source, goal, box = [], [], 1
    for theirs, length, ours, room in zip(part.offset, value.shape[1:], wanted.offset, target.shape[1:], strict=True):
        first, end = max(theirs, ours), min(theirs + length, ours + room)
        if end <= first:
            return 0
        source.append(slice(first - theirs, end - theirs))
        goal.append(slice(first - ours, end - ours))
        box *= end - first
    _, rows, targets = np.intersect1d(part.numbers(), wanted.numbers(), assume_unique=True, return_indices=True)
    for row, at in zip(rows.tolist(), targets.tolist(), strict=True):
        target[at, *goal] = value[row, *source]
        release_pages(value)
        after_row()
    return len(rows) * box
