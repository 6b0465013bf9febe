"""Look up active rows of a store in host memory, for copying them to the device."""

from __future__ import annotations

from mindspore import nn

from ascend_ops.host import host_op


class FetchRows(nn.Cell):
    """Lookup of rows of G tensors that share row numbers (the tensors of one layer's experts); `*`: any shape.
    construct(w, active_A, like) -> tuple of G tensors [A, *], with the shapes and dtypes of `like`
        w: tuple of G Parameters [K, *], float32. active: int32 row numbers; K is an unused entry and gives zeros.
        like: tuple of G tensors [A, *], float32, float16 or bfloat16, of which only shape and dtype are read. They are inputs
        because a parallel plan cuts tensors after shapes were inferred, while a host store has its rank's shape from the start.
    Raises RuntimeError for a row outside the store (the kernel returns 4), sizes that do not fit (3) or another dtype (2).
    """

    def __init__(self, tensors: int):
        """tensors: the number of tensors, G."""
        super().__init__()
        self.op = host_op("FetchRows", lambda *shapes: shapes[tensors + 1 :], lambda *dtypes: dtypes[tensors + 1 :])

    def construct(self, w, active_A, like):
        return self.op(*w, active_A, *like)
