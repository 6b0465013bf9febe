"""Kernels called directly, the way MindSpore calls them: what they return tells which check failed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest

from ascend_ops.library import cpu_library


@pytest.fixture(scope="session")
def call_kernel() -> Callable[..., int]:
    """call_kernel(function, *arrays) -> 0, or the number of the check that failed; arrays are inputs, then outputs."""
    library = ctypes.CDLL(cpu_library())

    def call(function: str, *arrays: np.ndarray) -> int:
        count = len(arrays)
        shapes = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in arrays]
        return getattr(library, function)(
            ctypes.c_int(count),
            (ctypes.c_void_p * count)(*(array.ctypes.data for array in arrays)),
            (ctypes.c_int * count)(*(array.ndim for array in arrays)),
            (ctypes.POINTER(ctypes.c_int64) * count)(*shapes),
            (ctypes.c_char_p * count)(*(array.dtype.name.encode() for array in arrays)),
            None,
            None,
        )

    return call
