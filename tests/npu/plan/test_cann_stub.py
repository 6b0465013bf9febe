"""Stand-ins are built once, and hold a function for each symbol that is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ascend_ops.errors import BuildError
from pangu_sigma.npu.plan.cann_stub import _linked_source, ascend_environment, build_cann_stub


def test_a_constructor_clears_its_object_and_all_else_returns_zero():
    names = ["_ZN2ge5ShapeC1Ev", "_ZN2ge8OperatorC1Ev", "_ZN2ge5Graph7AddNodeEv"]
    source = _linked_source(names)
    assert "long _ZN2ge5ShapeC1Ev(void *self) { memset(self, 0, 16); return (long)self; }" in source
    assert "long _ZN2ge8OperatorC1Ev(void *self) { memset(self, 0, 24); return (long)self; }" in source
    assert "long _ZN2ge5Graph7AddNodeEv(void) { return 0; }" in source


def test_a_machine_without_a_tool_is_told_what_to_install(tmp_path, monkeypatch):
    for tool in ("gcc", "g++", "strings"):
        (tmp_path / tool).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PANGU_SIGMA_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BuildError, match=r"need nm, c\+\+filt on PATH; install gcc, g\+\+ and binutils"):
        build_cann_stub()
    assert not [*(tmp_path / "cache").iterdir()]


def test_the_environment_names_the_rank_and_finds_the_stand_ins():
    variables = ascend_environment(16, 3)
    assert (variables["RANK_SIZE"], variables["RANK_ID"], variables["MS_SIMULATION_LEVEL"]) == ("16", "3", "0")
    lib64 = build_cann_stub() / "cann" / "lib64"
    assert variables["LD_LIBRARY_PATH"].startswith(str(lib64))
    assert (lib64 / "libascendcl.so").exists()


def test_mindspore_is_told_the_name_of_the_chip():
    ask = """
import os, sys
import mindspore as ms
from mindspore._c_expression import MSContext
from pangu_sigma.npu.plan.cann_stub import name_soc
context, found = MSContext.get_instance(), []
for chip in sys.argv[1:]:
    name_soc(chip)
    ms.set_context(device_target="Ascend")
    found.append(context.get_ascend_soc_version())
print("found", *found, flush=True)
os._exit(0)
"""
    chips = ("910a", "910b2", "910_93")
    command = [sys.executable, "-c", ask, *chips]
    done = subprocess.run(command, env=ascend_environment(8), capture_output=True, text=True)
    assert "found ascend910 ascend910b ascend910_93\n" in done.stdout, done.stderr
