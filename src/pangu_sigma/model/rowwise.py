"""LayerNorm and softmax, the operators that reduce over a whole row, in float32.

On Ascend they are MindSpore's fused operators. On the CPU those are slow: LayerNorm's kernels run element by element, and softmax's
gradient sums over the last of four axes, which is eleven times as slow as the same sum over two. So on the CPU they are composed of
fast operators, with hand-written gradients.

Shape suffixes: T rows, H columns.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops
from mindspore.ops import functional as F

from pangu_sigma.model.declare import Ones, Zero, make_parameter

EPSILON = 1e-5


class LayerNorm(nn.Cell):
    """LayerNorm over H with gain and bias, computed in float32. construct(x_TH) -> float32 [T, H]."""

    def __init__(self, hidden: int):
        super().__init__()
        self.gain = make_parameter("gain", (hidden,), Ones(), decay=False)
        self.bias = make_parameter("bias", (hidden,), Zero(), decay=False)
        self.norm = _LayerNorm() if on_cpu() else ops.LayerNorm(-1, -1, EPSILON)

    def construct(self, x_TH):
        return self.norm(F.cast(x_TH, ms.float32), self.gain, self.bias)[0]


def softmax() -> nn.Cell | ops.Primitive:
    """Return the softmax over the last axis, for a tensor with any number of axes."""
    return _Softmax() if on_cpu() else ops.Softmax(-1)


def on_cpu() -> bool:
    """Return True if the device is the CPU. Cells call it when they are constructed, so construct them after `set_device`."""
    return ms.get_context("device_target") == "CPU"


class _LayerNorm(nn.Cell):
    """LayerNorm from fast operators, in a third of the time of ops.LayerNorm, forward and backward."""

    def __init__(self):
        super().__init__()
        self.mean = ops.ReduceMean(keep_dims=True)
        self.sum = ops.ReduceSum()

    def construct(self, x_TH, gain_H, bias_H):
        """Return y = n · gain + bias, n = (x - mean) · r and r = 1 / √(variance + ε); the gradient reads n and r."""
        centred_TH = x_TH - self.mean(x_TH, -1)
        r_T1 = ops.rsqrt(self.mean(ops.square(centred_TH), -1) + EPSILON)
        n_TH = centred_TH * r_T1
        return n_TH * gain_H + bias_H, n_TH, r_T1

    def bprop(self, x_TH, gain_H, bias_H, out, dout):
        """Return the gradients of x, gain and bias: dx = r · (g - mean(g) - n · mean(g · n)) with g = dy · gain. out, dout: results
        of `construct` and their gradients, of which only dy, the gradient of y, is read."""
        _, n_TH, r_T1 = out
        dy_TH = dout[0]
        g_TH = dy_TH * gain_H
        dx_TH = (g_TH - self.mean(g_TH, -1) - n_TH * self.mean(g_TH * n_TH, -1)) * r_T1
        return dx_TH, self.sum(dy_TH * n_TH, 0), self.sum(dy_TH, 0)


class _Softmax(nn.Cell):
    """Softmax whose gradient takes half the time of the gradient of ops.Softmax."""

    def __init__(self):
        super().__init__()
        self.softmax = ops.Softmax(-1)
        self.sum = ops.ReduceSum(keep_dims=True)

    def construct(self, x):
        return self.softmax(x)

    def bprop(self, x, y, dy):
        """Return the gradient dx = y · (dy - sum(y · dy)), computed over two axes, all rows and the last axis of y."""
        shape = F.shape(y)
        y_TH, dy_TH = F.reshape(y, (-1, shape[-1])), F.reshape(dy, (-1, shape[-1]))
        return (F.reshape(y_TH * (dy_TH - self.sum(y_TH * dy_TH, -1)), shape),)
