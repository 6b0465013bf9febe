"""AdamW on the host, over the rows of a store that a step used. It is lazy: a row without tokens keeps its weights and state.

    m ← β1·m + (1 − β1)·g      v ← β2·v + (1 − β2)·g²      g = gradient · grad_scale
    w ← w·(1 − lr·decay) − lr · m/(1 − β1ᵗ) / (√(v/(1 − β2ᵗ)) + ε)      t = the row's own step count

A dense parameter is a store of one row. Shape suffixes: K stored rows, A active rows; `*` any trailing shape.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ascend_ops.host import host_op

HYPER = ("lr", "grad_scale", "apply", "beta1", "beta2", "eps")
"""Order of the `hyper` vector, float32 [6]. grad_scale: unscaling and clipping in one factor. apply = 0: no update (the gradients
overflowed)."""


class AdamRows(nn.Cell):
    """In-place AdamW of the active rows of G tensors that share step counts (those of one layer's experts); `*`: any shape.
    construct(w, m, v, grad, step_K, active_A, offsets_A1, hyper, decay) -> float32 [1], rows updated
        w, m, v: tuples of G Parameters [K, *], changed in place: w float32; m and v both float32, or both bfloat16 as the uint16 of
        its bits (rounded to nearest). step_K: int32 Parameter, changed in place.
        grad: tuple of G tensors [A, *], float32, float16 or bfloat16. decay: float32 [G], weight decay of each tensor.
        hyper: see `HYPER`.
        active: row of each gradient; entry a is skipped if offsets[a] == offsets[a + 1] (no token), whatever active[a] is.
    Raises RuntimeError if a used entry names a row outside the store (the kernel returns 4), for sizes that do not fit (3)
    or another dtype (2); nothing is changed then.
    """

    def __init__(self):
        super().__init__()
        self.op = host_op("AdamRows", lambda *shapes: (1,), lambda w, *others: w)
        # it writes its inputs: MindSpore must keep it, and keep its turn
        self.op.add_prim_attr("side_effect_mem", True)

    def construct(self, w, m, v, grad, step_K, active_A, offsets_A1, hyper, decay):
        return self.op(*w, *m, *v, *grad, step_K, active_A, offsets_A1, hyper, decay)


class SquareSum(nn.Cell):
    """Sum of squares of all elements of several tensors, for the global norm: construct(tensors) -> float32 scalar.

    float32 or float16 tensors; added in float64, in an order that does not depend on the number of threads.
    """

    def __init__(self):
        super().__init__()
        self.op = host_op("SquareSum", lambda *shapes: (1,), lambda *dtypes: ms.float32)

    def construct(self, tensors):
        return ops.reshape(self.op(*tensors), ())


class SquareSums(nn.Cell):
    """Sums of squares of all tensors together and of each tensor: construct(tensors) -> float32 [1 + tensors].

    The first number equals that of `SquareSum` bit for bit. The others are the sums of each tensor, made in the same pass.
    """

    def __init__(self):
        super().__init__()
        self.op = host_op("SquareSum", lambda *shapes: (1 + len(shapes),), lambda *dtypes: ms.float32)

    def construct(self, tensors):
        return self.op(*tensors)


def every_row(rows: int) -> tuple[Tensor, Tensor]:
    """Return `active` and `offsets` with which `AdamRows` updates all rows of a store: ordinary Adam."""
    return Tensor(np.arange(rows, dtype=np.int32)), Tensor(np.arange(rows + 1, dtype=np.int32))


def adam_oracle(
    w: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    t: int,
    grad: np.ndarray,
    *,
    lr: float,
    grad_scale: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> tuple[np.ndarray, ...]:
    """Compute the update of one row in float64: (w, m, v). t: the step count after this step."""
    w, m, v, g = (np.asarray(a, np.float64) for a in (w, m, v, grad))
    g = g * grad_scale
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    w = w * (1 - lr * weight_decay) - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return w, m, v
