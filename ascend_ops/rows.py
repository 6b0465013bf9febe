"""Rows of a store in one record each: gathered by key, and updated by lazy AdamW as `ascend_ops.adam` has it.

A record is float32 [3·W + 1]: weights, first and second moments, and the step count as the bits of an int32. A record of zeros is a
row that no token met. Shape suffixes: R rows, W width, T tokens, U different keys.
"""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np

from ascend_ops.library import cpu_library


def record_size(width: int) -> int:
    """Return the number of float32 of a record of a row of this width."""
    return 3 * width + 1


def gather_rows(records: np.ndarray, keys_T: np.ndarray, out_TW: np.ndarray) -> None:
    """Copy the weights of the rows `keys_T` into `out_TW`, float32. Rows of `out_TW` are contiguous, but may be parts of longer
    rows. records: all rows of the store."""
    assert _fits(records, keys_T) and out_TW.strides[1] == 4 and record_size(out_TW.shape[1]) == records.shape[1]
    arguments = records.ctypes.data, out_TW.shape[1], len(keys_T), keys_T.ctypes.data, out_TW.ctypes.data
    _library().RowsGather(*arguments, out_TW.strides[0] // 4)


def update_rows(records: np.ndarray, keys_T: np.ndarray, grads_TW: np.ndarray, hyper: np.ndarray) -> np.ndarray:
    """Update the rows `keys_T` by the sums of their gradients, and return the different keys, ascending [U].

    records: all rows of the store, changed in place. grads_TW: float32, gradient of each token's row, whose rows may be parts of
    longer ones; gradients of one key are added in their order. hyper: as in `HYPER`, float32.
    """
    assert _fits(records, keys_T) and grads_TW.strides[1] == 4 and record_size(grads_TW.shape[1]) == records.shape[1]
    order_T = np.argsort(keys_T, kind="stable")
    keys_U, first_U = np.unique(keys_T[order_T], return_index=True)
    offsets_U1 = np.append(first_U, len(keys_T))  # of each key's tokens in `order_T`
    _library().RowsUpdate(
        *(records.ctypes.data, grads_TW.shape[1], len(keys_U), keys_U.ctypes.data, offsets_U1.ctypes.data),
        *(order_T.ctypes.data, grads_TW.ctypes.data, grads_TW.strides[0] // 4, hyper.ctypes.data),
    )
    return keys_U


def _fits(records: np.ndarray, keys_T: np.ndarray) -> bool:
    """Return True if the kernels can take these arrays, and every key is the number of a row."""
    are_rows = not len(keys_T) or (keys_T.min() >= 0 and keys_T.max() < len(records))
    return are_rows and records.dtype == np.float32 and keys_T.dtype == np.int64 and keys_T.flags.c_contiguous


@cache
def _library() -> ctypes.CDLL:
    library, pointer, number = ctypes.CDLL(cpu_library()), ctypes.c_void_p, ctypes.c_int64
    library.RowsGather.argtypes = [pointer, number, number, pointer, pointer, number]
    library.RowsUpdate.argtypes = [pointer, number, number, *[pointer] * 4, number, pointer]
    return library
