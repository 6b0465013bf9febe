"""Parameters with what the optimizer must know about them, declared where they are made and never guessed from a name."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from mindspore.common.initializer import Initializer, Normal, TruncatedNormal, Zero, initializer

__all__ = ["Initializer", "Normal", "Ones", "TruncatedNormal", "Zero", "adopt", "as_tensor", "decays", "declare"]


def declare(name: str, shape: tuple[int, ...], init: Initializer, *, decay: bool) -> Parameter:
    """A float32 parameter. decay: True if weight decay applies (PanGu-α: not to biases and LayerNorm)."""
    parameter = Parameter(initializer(init, shape, mstype.float32), name=name)
    parameter.weight_decays = decay
    return parameter


def adopt(name: str, array: np.ndarray, *, decay: bool) -> Parameter:
    """A parameter whose memory is `array` itself: what either writes, the other sees."""
    parameter = Parameter(Tensor(np.zeros(1, array.dtype)), name=name)
    parameter.set_data(Tensor.from_numpy(array), slice_shape=True)
    parameter.weight_decays = decay
    return parameter


def decays(parameter: Parameter) -> bool:
    """True if weight decay applies to the parameter, as `declare` was told."""
    return parameter.weight_decays


class Ones(Initializer):
    """Initialiser of LayerNorm gains."""

    def _initialize(self, arr: np.ndarray) -> None:
        arr[:] = 1.0


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor that owns its memory (NumPy views of files and slices must not outlive their base)."""
    return Tensor(np.ascontiguousarray(array))
