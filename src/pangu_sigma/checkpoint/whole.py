"""The whole arrays of a checkpoint, whatever ranks wrote them, without having them in memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import numpy as np

from pangu_sigma.checkpoint.format import CheckpointError
from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.parts import Part, SavedArray, copy_part


def whole_array(saved: list[SavedArray], name: str) -> LazyArray:
    """The array that files have as one or as several parts. name: for messages.

    Raises CheckpointError, when its values are asked for, if a part of it is in no file.
    """
    whole, dtype = saved[0].part.whole, saved[0].values.dtype

    def content() -> Iterable[np.ndarray]:
        if len(saved) == 1 and saved[0].is_whole:
            yield saved[0].values
            let_go(saved[0].values)
        else:
            for number in range(whole[0]):
                yield row_of(saved, number, name)

    return LazyArray(whole, dtype, content, name)


def row_of(saved: list[SavedArray], number: int, name: str) -> np.ndarray:
    """A row of the first axis of such an array, such as the tensor of one expert."""
    if len(saved) == 1 and saved[0].is_whole:
        return saved[0].values[number]
    whole = saved[0].part.whole
    row = np.empty((1, *whole[1:]), saved[0].values.dtype)
    wanted = Part(whole, ((number, number + 1),), (0,) * (len(whole) - 1))
    copied = sum(copy_part(array, row, wanted) for array in saved)
    if copied != row.size:
        raise CheckpointError(
            f"{name}[{number}] has {copied} of {row.size} values; a file is missing, use another checkpoint"
        )
    return row[0]


def let_go(values: np.ndarray) -> None:
    """Give back the memory that a mapped file takes; it is read again when it is touched."""
    base = values
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)
