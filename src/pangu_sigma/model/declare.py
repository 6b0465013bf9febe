"""Create parameters, and mark each with whether weight decay applies to it; nothing is guessed from its name."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, mutable
from mindspore.common import dtype as mstype
from mindspore.common.initializer import Constant, Initializer, Normal, TruncatedNormal, Zero, initializer

__all__ = [
    "Constant",
    "Initializer",
    "Normal",
    "Ones",
    "TruncatedNormal",
    "Zero",
    "as_input",
    "as_tensor",
    "has_weight_decay",
    "make_parameter",
    "wrap_array",
]


def make_parameter(name: str, shape: tuple[int, ...], init: Initializer, *, decay: bool) -> Parameter:
    """Create a float32 parameter. decay: True if weight decay applies (PanGu-α: not to biases and LayerNorm)."""
    parameter = Parameter(initializer(init, shape, mstype.float32), name=name)
    parameter.weight_decays = decay
    return parameter


def wrap_array(name: str, array: np.ndarray, *, decay: bool) -> Parameter:
    """Create a parameter that shares memory with `array`: a write to either shows in the other. decay: as in `make_parameter`."""
    # Parameter() would copy the array, set_data does not; slice_shape permits a shape other than the placeholder's
    parameter = Parameter(Tensor(np.zeros(1, array.dtype)), name=name)
    parameter.set_data(Tensor.from_numpy(array), slice_shape=True)
    parameter.weight_decays = decay
    return parameter


def has_weight_decay(parameter: Parameter) -> bool:
    """Return True if weight decay applies to the parameter, as given to `make_parameter`."""
    return parameter.weight_decays


class Ones(Initializer):
    """Initialiser of LayerNorm gains: ones."""

    def _initialize(self, arr: np.ndarray) -> None:
        arr[:] = 1.0


def as_tensor(array: np.ndarray) -> Tensor:
    """Copy an array to a tensor that owns its memory (NumPy views of files and slices must not outlive their base)."""
    return Tensor(np.ascontiguousarray(array))


def as_input(value: Any) -> Any:
    """Copy an array, or a tuple of arrays or tensors, to an input of a graph. A tuple becomes `mutable`: MindSpore takes any other
    tuple for a constant, and compiles the graph again for each new tuple."""
    if isinstance(value, tuple):
        return mutable(tuple(map(as_input, value))) if value else ()
    return value if isinstance(value, Tensor) else as_tensor(value)
