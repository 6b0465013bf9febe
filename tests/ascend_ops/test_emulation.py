"""Every rule of the emulation speaks up about a kernel that breaks it, and only then."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from ascend_ops.emulation.compiling import PROJECT
from ascend_ops.emulation.emulator import CHIPS


@pytest.mark.parametrize("chip", CHIPS)
def test_rules(chip, tmp_path):
    target = tmp_path / "broken.so"
    source = Path(__file__).parent / "broken_kernels.cpp"
    macros = [f"-D{name}={value}" for name, value in CHIPS[chip].items()]
    command = ["g++", "-std=c++17", "-O0", "-shared", "-fPIC", f"-I{PROJECT / 'emulation'}", *macros]
    subprocess.run([*command, str(source), "-o", str(target)], check=True)
    library = ctypes.CDLL(str(target))
    library.name_of.restype = library.error_of.restype = ctypes.c_char_p
    assert library.count() > 30
    for number in range(library.count()):
        name, error = library.name_of(number).decode(), library.error_of(number).decode()
        assert error.startswith(f"[{name.partition(':')[0]}]"), f"{name}: {error}"
