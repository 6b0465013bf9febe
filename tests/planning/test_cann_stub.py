"""Stand-ins are built once, and hold a function for each symbol that is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pangu_sigma.chips import CHIP_DATA
from pangu_sigma.planning.cann_stub import _linked_source, ascend_environment, build_cann_stub


def test_a_constructor_clears_its_object_and_all_else_returns_zero():
    names = ["_ZN2ge5ShapeC1Ev", "_ZN2ge8OperatorC1Ev", "_ZN2ge5Graph7AddNodeEv", "aclrtGetSocName"]
    source = _linked_source(names)
    assert "long _ZN2ge5ShapeC1Ev(void *self) { memset(self, 0, 16); return (long)self; }" in source
    assert "long _ZN2ge8OperatorC1Ev(void *self) { memset(self, 0, 24); return (long)self; }" in source
    assert "long _ZN2ge5Graph7AddNodeEv(void) { return 0; }" in source
    assert "aclrtGetSocName" not in source, "it has a definition of its own"


def test_the_environment_names_the_rank_and_finds_the_stand_ins():
    variables = ascend_environment(16, 3)
    assert (variables["RANK_SIZE"], variables["RANK_ID"], variables["MS_SIMULATION_LEVEL"]) == ("16", "3", "0")
    lib64 = build_cann_stub() / "cann" / "lib64"
    assert variables["LD_LIBRARY_PATH"].startswith(str(lib64))
    assert (lib64 / "libascendcl.so").exists()


@pytest.mark.parametrize("chip", ["910a", "910b", "910_93"])
def test_the_stand_in_answers_with_the_name_of_the_chip(chip):
    ask = "import ctypes; f = ctypes.CDLL('libascendcl.so').aclrtGetSocName; f.restype = ctypes.c_char_p; print(f().decode())"
    done = subprocess.run(
        [sys.executable, "-c", ask], env=ascend_environment(8, 0, chip), capture_output=True, text=True
    )
    assert done.stdout.strip() == CHIP_DATA[chip].soc, done.stderr
