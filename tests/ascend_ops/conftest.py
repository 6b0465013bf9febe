"""Kernels called directly, the way MindSpore calls them: what they return tells which check failed."""

from __future__ import annotations

import ctypes
import functools
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest

from ascend_ops.emulation import Emulator, compile_emulator
from ascend_ops.library import cpu_library


@pytest.fixture(scope="session")
def call_kernel() -> Callable[..., int]:
    """call_kernel(function, *arrays) -> 0, or the number of the check that failed; arrays are inputs, then outputs."""
    return caller(ctypes.CDLL(cpu_library()))


ISAS = ("avx512", "avx2", "scalar")


@pytest.fixture(scope="session")
def isa_libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By instruction set of this processor, the widest first, a library held to it. A library chooses once, so each is a copy."""
    folder, libraries = tmp_path_factory.mktemp("kernels"), {}
    with pytest.MonkeyPatch.context() as patch:
        for isa in ISAS:
            patch.setenv("PANGU_SIGMA_ISA", isa)
            copy = str(shutil.copy(cpu_library(), folder / f"{isa}.so"))
            library = ctypes.CDLL(copy)
            library.KernelIsa.restype = ctypes.c_char_p
            libraries[library.KernelIsa().decode()] = copy
    return libraries


@pytest.fixture(scope="session", params=ISAS)
def isa_library(request: pytest.FixtureRequest, isa_libraries: dict[str, str]) -> str:
    """The library of each instruction set; skips those that this processor does not have."""
    if request.param not in isa_libraries:
        pytest.skip(f"this processor has no {request.param}")
    return isa_libraries[request.param]


@pytest.fixture(scope="session")
def call_kernel_of_isa(isa_library: str) -> Callable[..., int]:
    """call_kernel with the loops of each instruction set."""
    return caller(ctypes.CDLL(isa_library))


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
def emulator_of(made_once) -> Callable[[str, str], Emulator]:
    """emulator_of(chip, dtype): the shipped Ascend C kernels for them, compiled once for all processes."""

    @functools.cache
    def emulator(chip: str, dtype: str) -> Emulator:
        folder = made_once(f"emulator_{chip}_{dtype}", lambda folder: compile_emulator(chip, dtype, folder=folder))
        return Emulator(chip, dtype, compile_emulator(chip, dtype, folder=folder))

    return emulator
