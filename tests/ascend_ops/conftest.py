"""Kernels called directly, the way MindSpore calls them: what they return tells which check failed."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest
from helpers.kernel_cases import TARGETS

from ascend_ops.emulation import Emulator, compile_emulator
from ascend_ops.library import cpu_library


@pytest.fixture(scope="session")
def call_kernel() -> Callable[..., int]:
    """call_kernel(function, *arrays) -> 0, or the number of the check that failed; arrays are inputs, then outputs."""
    return caller(ctypes.CDLL(cpu_library()))


@pytest.fixture(scope="session", params=["avx512", "avx2", "scalar"])
def call_kernel_of_isa(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """call_kernel with the loops of each instruction set; skips those that this processor does not have."""
    copy = shutil.copy(cpu_library(), tmp_path_factory.mktemp(request.param))  # a library chooses once
    library = ctypes.CDLL(copy)
    library.KernelIsa.restype = ctypes.c_char_p
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PANGU_SIGMA_ISA", request.param)
        if library.KernelIsa().decode() != request.param:
            pytest.skip(f"this processor has no {request.param}")
    return caller(library)


def caller(library: ctypes.CDLL) -> Callable[..., int]:
    """See call_kernel."""

    def call(function: str, *arrays: np.ndarray) -> int:
        count = len(arrays)
        shapes = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in arrays]
        return getattr(library, function)(
            ctypes.c_int(count),
            (ctypes.c_void_p * count)(*(array.ctypes.data for array in arrays)),
            (ctypes.c_int * count)(*(array.ndim for array in arrays)),
            (ctypes.POINTER(ctypes.c_int64) * count)(*shapes),
            (ctypes.c_char_p * count)(*(array.dtype.name.encode() for array in arrays)),
            None,
            None,
        )

    return call


@pytest.fixture
def threads_of() -> Callable[[int], AbstractContextManager[None]]:
    """`with threads_of(n):` kernels called from here use n threads, as OMP_NUM_THREADS=n makes them."""
    library = ctypes.CDLL(cpu_library())

    @contextmanager
    def limited(threads: int) -> Iterator[None]:
        before = library.omp_get_max_threads()
        library.omp_set_num_threads(threads)
        try:
            yield
        finally:
            library.omp_set_num_threads(before)

    return limited


@pytest.fixture(scope="session")
def emulators(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Emulator]:
    """The shipped Ascend C kernels compiled for every chip and dtype, by (chip, dtype)."""
    folder = tmp_path_factory.mktemp("emulators")
    with ThreadPoolExecutor() as pool:
        libraries = pool.map(lambda target: compile_emulator(*target, folder=folder), TARGETS)
    return {target: Emulator(*target, library) for target, library in zip(TARGETS, libraries, strict=True)}
