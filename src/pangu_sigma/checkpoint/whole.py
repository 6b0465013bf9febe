"""The whole arrays of a checkpoint, whatever ranks wrote them, without having them in memory."""

from __future__ import annotations

from functools import partial

import numpy as np

from pangu_sigma.checkpoint.format import CheckpointError
from pangu_sigma.checkpoint.lazy import LazyArray
from pangu_sigma.checkpoint.parts import Part, SavedArray, copy_part


def whole_array(saved: list[SavedArray], name: str) -> LazyArray:
    """The array that files have as one or as several parts; each of its rows can be read alone. name: for messages.

    Raises CheckpointError, when its values are asked for, if a part of it is in no file.
    """
    if len(saved) == 1 and saved[0].is_whole:
        return LazyArray.of(saved[0].values, name)
    whole, row = saved[0].part.whole, partial(_row, saved, name)
    return LazyArray(whole, saved[0].values.dtype, lambda: map(row, range(whole[0])), name, row=row)


def _row(saved: list[SavedArray], name: str, number: int) -> np.ndarray:
    whole = saved[0].part.whole
    row = np.empty((1, *whole[1:]), saved[0].values.dtype)
    wanted = Part(whole, ((number, number + 1),), (0,) * (len(whole) - 1))
    copied = sum(copy_part(array, row, wanted) for array in saved)
    if copied != row.size:
        raise CheckpointError(
            f"{name}[{number}] has {copied} of {row.size} values; a file is missing, use another checkpoint"
        )
    return row[0]
