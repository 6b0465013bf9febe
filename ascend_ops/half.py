"""Cast float32 to float16 on the CPU at memory speed; the casts of MindSpore and NumPy take several times as long."""

from __future__ import annotations

import ctypes
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from ascend_ops.host import host_op
from ascend_ops.library import cpu_library


class CastWeights(nn.Cell):
    """Cast of weights to float32 or float16, rounded to nearest even: construct(weight). It has no gradient. On Ascend it is
    MindSpore's Cast."""

    def __init__(self, dtype: ms.Type):
        super().__init__()
        self.dtype = dtype
        on_host = dtype == ms.float16 and ms.get_context("device_target") == "CPU"
        self.op = host_op("ToHalf", lambda weight: weight, lambda weight: ms.float16) if on_host else None

    def construct(self, weight):
        if self.op is None:
            return ops.cast(weight, self.dtype)
        return self.op(weight)


def copy_rows(source: np.ndarray, target: np.ndarray) -> None:
    """Copy a contiguous float32 array to one of the same size, float32 or float16, in this thread and without holding a lock."""
    assert source.dtype == np.float32 and source.size == target.size
    assert source.flags.c_contiguous and target.flags.c_contiguous
    if target.dtype == np.float16:
        _library().CopyToHalf(source.ctypes.data, target.ctypes.data, source.size)
    else:
        np.copyto(target, source)


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(cpu_library())
    library.CopyToHalf.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    library.CopyToHalf.restype = None
    return library
