"""Constants of an exported graph: parameters that are not trained, and the numbers below a length."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops
from mindspore.ops import functional as F


def fixed_parameter(name: str, values: np.ndarray, dtype: type | np.dtype = np.int32) -> Parameter:
    """Make a parameter that is not trained, for a constant or a cache of an exported graph."""
    return Parameter(Tensor(np.ascontiguousarray(values, dtype)), name=name, requires_grad=False)


def numbered(length):
    """Return the int32 tensor 0 … length - 1 in a graph, in place of `ops.arange`, which with dynamic shapes keeps the length of
    the first call (MindSpore 2.9)."""
    return ops.cumsum(F.ones((length,), ms.int32), 0) - 1
