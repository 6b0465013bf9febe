"""Kernels called directly, the way MindSpore calls them: what they return tells which check failed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from kernel_call import call_kernel
from kernel_cases import TARGETS

from ascend_ops.emulation import Emulator, compile_emulator


@pytest.fixture(scope="session", name="call_kernel")
def kernel_in_this_process() -> Callable[..., int]:
    """call_kernel(function, *arrays) -> 0, or the number of the check that failed; arrays are inputs, then outputs."""
    return call_kernel


@pytest.fixture(scope="session")
def emulators(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Emulator]:
    """The shipped Ascend C kernels compiled for every chip and dtype, by (chip, dtype)."""
    folder = tmp_path_factory.mktemp("emulators")
    with ThreadPoolExecutor() as pool:
        libraries = pool.map(lambda target: compile_emulator(*target, folder=folder), TARGETS)
    return {target: Emulator(*target, library) for target, library in zip(TARGETS, libraries, strict=True)}
