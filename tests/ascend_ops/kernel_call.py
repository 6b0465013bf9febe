"""A kernel of the CPU library called the way MindSpore calls it, in this process or in one that is held to an instruction set."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from ascend_ops.library import cpu_library


def call_kernel(function: str, *arrays: np.ndarray) -> int:
    """0, or the number of the check that failed; arrays are inputs, then outputs."""
    count = len(arrays)
    shapes = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in arrays]
    return getattr(ctypes.CDLL(cpu_library()), function)(
        ctypes.c_int(count),
        (ctypes.c_void_p * count)(*(array.ctypes.data for array in arrays)),
        (ctypes.c_int * count)(*(array.ndim for array in arrays)),
        (ctypes.POINTER(ctypes.c_int64) * count)(*shapes),
        (ctypes.c_char_p * count)(*(array.dtype.name.encode() for array in arrays)),
        None,
        None,
    )


class KernelProcess:
    """Kernels in a process with an environment of its own: the library reads some of it once."""

    def __init__(self, **environment: str):
        cpu_library()  # compiled here, not by several at once
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, initializer=_set_environment, initargs=(environment,))

    def isa(self) -> str:
        """The instruction set in use."""
        return self._pool.submit(_isa).result()

    def call(self, function: str, *arrays: np.ndarray, flush: str = "") -> list[np.ndarray]:
        """The arrays after a call that succeeded; those given do not change. flush: library that sets flush-to-zero before."""
        failed, after, flushing = self._pool.submit(_call, function, list(arrays), flush).result()
        assert failed == 0
        assert flushing == bool(flush), "the treatment of subnormal numbers in the calling thread is restored"
        return after

    def close(self) -> None:
        self._pool.shutdown()


def _set_environment(environment: dict[str, str]) -> None:
    os.environ.update(environment)


def _isa() -> str:
    name = ctypes.CDLL(cpu_library()).KernelIsa
    name.restype = ctypes.c_char_p
    return name().decode()


def _call(function: str, arrays: list[np.ndarray], flush: str) -> tuple[int, list[np.ndarray], bool]:
    library = ctypes.CDLL(flush) if flush else None
    if library is None:
        return call_kernel(function, *arrays), arrays, False
    library.set_flushing(1)
    try:
        return call_kernel(function, *arrays), arrays, bool(library.flushing())
    finally:
        library.set_flushing(0)
