"""Where an array of a file lies in the whole one, which several ranks wrote, and may read divided in another way."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Part:
    """Some rows of an array, and of each a box: experts of a rank, a slice of a matrix, or everything.

    whole: shape of the whole array. rows: runs (first, end) of its first axis, ascending. offset: first index of each other axis;
    the array's own shape says how far it goes.
    """

    whole: tuple[int, ...]
    rows: tuple[tuple[int, int], ...]
    offset: tuple[int, ...]

    @classmethod
    def everything(cls, shape: tuple[int, ...]) -> Part:
        return cls(shape, ((0, shape[0]),) if shape else (), (0,) * (len(shape) - 1))

    @classmethod
    def of_rows(cls, shape: tuple[int, ...], rows: np.ndarray) -> Part:
        """Of an array of `shape`, the rows with these numbers, ascending."""
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        return cls(shape, tuple((int(run[0]), int(run[-1]) + 1) for run in runs), (0,) * (len(shape) - 1))

    def numbers(self) -> np.ndarray:
        """Number in the whole array of each row of this one."""
        return np.concatenate([np.arange(first, end) for first, end in self.rows])


def encode_parts(parts: dict[str, Part]) -> str:
    """As text, for a file's metadata."""
    return json.dumps({name: asdict(part) for name, part in parts.items()})


def decode_parts(text: str) -> dict[str, Part]:
    """What `encode_parts` wrote."""
    return {
        name: Part(tuple(part["whole"]), tuple((first, end) for first, end in part["rows"]), tuple(part["offset"]))
        for name, part in json.loads(text).items()
    }


def copy_part(
    value: np.ndarray, part: Part, target: np.ndarray, wanted: Part, after_row: Callable[[], None] = lambda: None
) -> int:
    """Copy what `value` has of `target`, row by row, keeping no more than a row of a mapped file in memory; elements copied.

    part, wanted: where the two lie in the same whole array. after_row: called after each row.
    """
    if not part.whole:
        target[...] = value
        return 1
    source, place, box = [], [], 1
    for theirs, length, ours, room in zip(part.offset, value.shape[1:], wanted.offset, target.shape[1:], strict=True):
        first, end = max(theirs, ours), min(theirs + length, ours + room)
        if end <= first:
            return 0
        source.append(slice(first - theirs, end - theirs))
        place.append(slice(first - ours, end - ours))
        box *= end - first
    _, rows, targets = np.intersect1d(part.numbers(), wanted.numbers(), assume_unique=True, return_indices=True)
    for row, at in zip(rows.tolist(), targets.tolist(), strict=True):
        target[at, *place] = value[row, *source]
        if isinstance(value.base, mmap.mmap):
            value.base.madvise(mmap.MADV_DONTNEED)
        after_row()
    return len(rows) * box
