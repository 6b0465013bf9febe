"""Benchmarks of this machine for training on the host: memory bandwidth, Adam, matrix products. They take a few seconds."""

from __future__ import annotations

import os
import statistics
import timeit
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from ascend_ops.adam import HYPER, AdamRows, every_row
from ascend_ops.grouped_ffn import GroupedFFN
from pangu_sigma.check import Check
from pangu_sigma.device import use_cpu

_COPIED = 1 << 26
"""Number of float32 values that the memory benchmark copies."""
_EXPERTS, _EXPERT_SIZE = 4, 1 << 22
"""Experts in the Adam benchmark, and parameters of each. Adam moves 28 bytes a parameter: weight, moments, gradient."""
_SIDE = 2048
"""Number of rows and columns of the benchmarked matrix product."""
_TOKENS, _HIDDEN, _FFN = 2048, 512, 2048


def speed_checks() -> list[Check]:
    """Run the benchmarks and return their results as checks that always pass. Imports MindSpore and compiles the CPU kernels."""
    use_cpu()
    products = ", ".join(f"{name} {2 * _SIDE**3 / seconds / 1e9:.0f}" for name, seconds in _products().items())
    ffn = 4 * _TOKENS * _HIDDEN * _FFN / _grouped_ffn() / 1e9
    return [
        Check("memory speed", True, f"{8 * _COPIED / _copy() / 1e9:.1f} GB/s of a copy, read and written"),
        Check("Adam speed", True, f"{28 * _EXPERTS * _EXPERT_SIZE / _adam() / 1e9:.1f} GB/s over rows of experts"),
        Check("product speed", True, f"{products}, grouped FFN {ffn:.0f} GFLOP/s in float32"),
    ]


def _seconds(work: Callable[[], Any], runs: int = 5) -> float:
    """Return the median time of a few runs, after a warm-up run."""
    return statistics.median(timeit.repeat(work, number=1, repeat=runs + 1)[1:])


def _copy() -> float:
    source, target = np.ones(_COPIED, np.float32), np.zeros(_COPIED, np.float32)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        rows = [slice(begin, begin + (1 << 22)) for begin in range(0, _COPIED, 1 << 22)]
        return _seconds(lambda: list(pool.map(lambda some: np.copyto(target[some], source[some]), rows)))


class _Adam(nn.Cell):
    """AdamW over all rows of an expert store."""

    def __init__(self) -> None:
        super().__init__()
        rows = (_EXPERTS, _EXPERT_SIZE)
        stored = ((name, np.full(rows, value, np.float32)) for name, value in (("w", 0.02), ("m", 0.0), ("v", 0.0)))
        self.w, self.m, self.v = (ParameterTuple([Parameter(Tensor(array), name=name)]) for name, array in stored)
        self.step = Parameter(Tensor(np.zeros(_EXPERTS, np.int32)), name="step")
        fixed = {"lr": 1e-4, "grad_scale": 1.0, "apply": 1.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
        self.hyper = Tensor(np.array([fixed.get(name, 0.0) for name in HYPER], np.float32))
        self.decay, self.grad = Tensor(np.zeros(1, np.float32)), Tensor(np.full(rows, 1e-3, np.float32))
        self.adam = AdamRows()

    def construct(self, active_E, offsets_E1):
        grads = (self.grad,)
        return self.adam(self.w, self.m, self.v, grads, self.step, active_E, offsets_E1, self.hyper, self.decay)


def _adam() -> float:
    update, rows = _Adam(), every_row(_EXPERTS)
    return _seconds(lambda: update(*rows).asnumpy())


def _products() -> dict[str, float]:
    a = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), np.float32)
    tensor = Tensor(a)
    return {"NumPy": _seconds(lambda: a @ a), "MindSpore": _seconds(lambda: ops.matmul(tensor, tensor).asnumpy())}


def _grouped_ffn() -> float:
    up, down = (_EXPERTS, _FFN, _HIDDEN), (_EXPERTS, _HIDDEN)
    shapes = [(_TOKENS, _HIDDEN), up, up[:2], up, down]
    arrays = [Tensor(np.full(shape, 0.01, np.float32)) for shape in shapes]
    offsets, ffn = Tensor(np.linspace(0, _TOKENS, _EXPERTS + 1).astype(np.int32)), GroupedFFN()
    return _seconds(lambda: ffn(*arrays, offsets).asnumpy())
