"""Deliberate defects in kernels and host sides, one of each kind, are caught: by the compiler, by a rule of the emulation, or by a
wrong result. Each rule of the emulation alone is broken in broken_kernels.cpp."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.host_cases import check_host
from helpers.kernel_cases import check_everything

from ascend_ops.emulation import Emulator, KernelError, OpHost, TilingError, compile_emulator, compile_host
from ascend_ops.emulation.compiling import FOLDERS, PROJECT
from ascend_ops.errors import BuildError


class Mutation(NamedTuple):
    """`old` is replaced by `new`, everywhere in `file`; the error contains `message`."""

    name: str
    file: str
    chip: str
    dtype: str
    old: str
    new: str
    message: str

    @property
    def is_on_host(self) -> bool:
        """True in the host side, which is compiled for itself, and runs with the kernels as shipped."""
        return self.file.startswith("op_host")


TILING, HOST = "op_host/tiling.h", "op_host/operator.h"
NOT_COMPILED = ("CAST_ROUND", "910A has no DataCopyPad")
"""Messages of the mutations that do not compile."""

MUTATIONS = [
    Mutation(name, file, *target, *change)
    for (file, *target), mutations in {
        ("op_kernel/move_rows.h", "910B", "float16"): {
            "dropped DeQue": ("group = queue.template DeQue<T>();", "", "[sync]"),
            "32-bit source row": ("<uint64_t>(indices.At", "<uint32_t>(indices.At", "[uninitialised]"),
        },
        ("op_kernel/index_tile.h", "910A", "float16"): {
            "index tail read from the table's start": ("uint64_t>(start) + i", "uint64_t>(0) + i", "wrong"),
        },
        ("op_kernel/add_rows.h", "910B", "bfloat16"): {
            "dropped barrier": ("PipeBarrier<PIPE_V>();  // the next turn overwrites fa\n", "", "[barrier]"),
            "half up and not to even": ("CAST_RINT", "CAST_ROUND", "CAST_ROUND"),
        },
        ("op_kernel/tiny_rows.h", "910A", "float16"): {
            "flat tail not shifted back": ("at = count < n ? 0 : count - n;", "at = at;", "["),
        },
        ("op_kernel/chip.h", "910B", "float16"): {
            "cores overlap by a row": ("GetBlockIdx()) * perCore;", "GetBlockIdx()) * (perCore - 1);", "[cores]"),
        },
        ("op_kernel/chip.h", "910A", "float16"): {
            "slots not on 32 B": ("from[i * Slot<T>(n)]", "from[i * n]", "[alignment]"),
            "DataCopyPad on 910A": ("WHOLE_BLOCKS 1", "WHOLE_BLOCKS 0", "910A has no DataCopyPad"),
        },
        (TILING, "910A", "float16"): {"eight buffers": ("<= capacity(4) ? 4", "<= capacity(8) ? 8", "[capacity]")},
        (HOST, "910B", "float16"): {
            "AI cores for vector cores": ("platform.GetCoreNumAiv() :", "platform.GetCoreNum() :", "wrong tiling"),
            "length of the residual not checked": ("shape.GetDim(0) != rows || ", "", "not refused"),
        },
        ("op_host/expert_combine.cpp", "910B", "float16"): {
            "residual required": ("OPTIONAL", "REQUIRED", "wrong arguments"),
        },
        ("op_host/expert_dispatch.cpp", "910B", "float16"): {
            "bfloat16 offered on 910A": ("Declare(ascend910, false)", "Declare(ascend910, true)", "wrong dtypes"),
        },
    }.items()
    for name, change in mutations.items()
]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Path]]]:
    """The library of each mutation, compiled in the background."""
    with ThreadPoolExecutor() as pool:
        yield {m.name: pool.submit(compile_mutation, m, tmp_path_factory.mktemp("mutant")) for m in MUTATIONS}


def compile_mutation(mutation: Mutation, folder: Path) -> Path:
    for name in FOLDERS:
        shutil.copytree(PROJECT / name, folder / name)
    path = folder / mutation.file
    text = path.read_text()
    if mutation.old not in text:
        raise LookupError(f"{mutation.name}: {mutation.file} has changed; mutate it as it is now")
    path.write_text(text.replace(mutation.old, mutation.new))
    if mutation.is_on_host:
        return compile_host(folder, folder)
    return compile_emulator(mutation.chip, mutation.dtype, folder, folder)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_is_caught(emulator_of, libraries, mutation: Mutation):
    error = BuildError if mutation.message in NOT_COMPILED else (KernelError, AssertionError, TilingError)
    with pytest.raises(error) as caught:
        library = libraries[mutation.name].result()
        if mutation.file == TILING:  # with the kernels as shipped
            emulator = copy(emulator_of(mutation.chip, mutation.dtype))
            emulator.host = OpHost(library)
            check_everything(emulator)
        elif mutation.is_on_host:
            check_host(OpHost(library))
        else:
            check_everything(Emulator(mutation.chip, mutation.dtype, library))
    assert mutation.message in str(caught.value)
