"""Which chip the kernels take a compiler's macros for: three chips, by either macro of CANN, and no other."""

from __future__ import annotations

import subprocess

import pytest

from ascend_ops.emulation.compiling import PROJECT

ARCHITECTURE, AICORE = "__NPU_ARCH__", "__CCE_AICORE__"
CHIPS = {  # macros, and 1 where only whole blocks are moved
    "910A": ({ARCHITECTURE: 1001, AICORE: 100}, 1),
    "910A by the older macro": ({AICORE: 100}, 1),
    "910B and 910_93": ({ARCHITECTURE: 2201, AICORE: 220}, 0),
    "910B and 910_93 by the newer macro": ({ARCHITECTURE: 2201}, 0),
}

KERNELS = """
#define DTYPE_X half
#define DTYPE_ROWS half
#include "expert_dispatch.cpp"
#include "expert_combine.cpp"
"""


def compiled(macros: dict[str, int], source: str) -> str:
    """What g++ says about `source` behind the kernels' headers; nothing if it compiles."""
    command = ["g++", "-std=c++17", "-fsyntax-only", f"-I{PROJECT / 'emulation'}", f"-I{PROJECT / 'op_kernel'}"]
    command += [f"-D{name}={value}" for name, value in macros.items()]
    done = subprocess.run([*command, "-x", "c++", "-"], input=source, capture_output=True, text=True)
    assert bool(done.returncode) == bool(done.stderr)
    return done.stderr


@pytest.mark.parametrize("chip", CHIPS)
def test_kernels_compile_for_the_chip(chip: str):
    """The emulation refuses, as the chip would, what 910A lacks; it reads the macros for itself."""
    macros, whole_blocks = CHIPS[chip]
    assert compiled(macros, f"{KERNELS}static_assert(ASCEND_OPS_WHOLE_BLOCKS == {whole_blocks});\n") == ""


def test_another_chip_is_refused():
    for macros in ({}, {ARCHITECTURE: 2002, AICORE: 200}):  # none, and 310P
        message = compiled(macros, '#include "chip.h"')
        assert "neither 910A" in message and "nor 910B or 910_93" in message
