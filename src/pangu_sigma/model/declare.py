"""Parameters with what the optimizer must know about them, declared where they are made and never guessed from a name."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from mindspore.common.initializer import Initializer, Normal, TruncatedNormal, Zero, initializer

__all__ = ["Normal", "Ones", "Replicated", "TruncatedNormal", "Zero", "decays", "declare"]


def declare(name: str, shape: tuple[int, ...], init: Initializer, *, decay: bool) -> Parameter:
    """A float32 parameter. decay: whether weight decay applies (PanGu-α: not to biases and LayerNorm)."""
    parameter = Parameter(initializer(init, shape, mstype.float32), name=name)
    parameter.weight_decays = decay
    return parameter


def decays(parameter: Parameter) -> bool:
    """What `declare` said about weight decay."""
    return parameter.weight_decays


class Ones(Initializer):
    """LayerNorm gains."""

    def _initialize(self, arr: np.ndarray) -> None:
        arr[:] = 1.0


class Replicated(Initializer):
    """Every row along the first axis equal to one draw of `inner`: experts that start as copies of one FFN."""

    def __init__(self, inner: Initializer):
        super().__init__(inner=inner)
        self.inner = inner

    def _initialize(self, arr: np.ndarray) -> None:
        one = np.empty(arr.shape[1:], arr.dtype)
        self.inner(one)
        arr[:] = one


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor that owns its memory (NumPy views of files and slices must not outlive their base)."""
    return Tensor(np.ascontiguousarray(array))
