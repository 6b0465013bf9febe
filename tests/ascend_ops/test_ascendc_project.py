"""The Ascend C project: names that must agree between files that no compiler here sees together, and its scripts."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest

from ascend_ops.emulation.compiling import PROJECT
from ascend_ops.emulation.op_host import shipped_host
from ascend_ops.expert_dispatch import COMBINE, DISPATCH

SIGNATURES = {"ExpertDispatch": DISPATCH, "ExpertCombine": COMBINE}


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def kernel(operator: str) -> str:
    return (PROJECT / "op_kernel" / f"{snake(operator)}.cpp").read_text()


def test_kernels_include_only_ascend_c_and_their_own_headers():
    own = {path.name for path in (PROJECT / "op_kernel").glob("*.h")}
    for path in (PROJECT / "op_kernel").glob("*.[hc]*"):
        included = set(re.findall(r"#include\s+[<\"]([^>\"]+)", path.read_text()))
        assert included <= own | {"kernel_operator.h"} | ({"cstdint"} if path.name == "tiling_data.h" else set()), path


def test_host_includes_only_cann_and_its_own_headers():
    """Of CANN what the emulation has under the same name; the arithmetic of the tiling needs none of it."""
    actual = {
        path.name: set(re.findall(r"#include\s+[<\"]([^>\"]+)", path.read_text()))
        for path in (PROJECT / "op_host").glob("*.[hc]*")
    }
    assert actual["tiling.h"] == {"algorithm", "cstdint", "../op_kernel/tiling_data.h"}
    assert actual["operator.h"] - {"string", "vector", "tiling.h"} == {
        str(path.relative_to(PROJECT / "emulation")) for path in (PROJECT / "emulation").glob("*/**/*.h")
    }
    assert actual["expert_dispatch.cpp"] == actual["expert_combine.cpp"] == {"operator.h"}


@pytest.mark.parametrize("operator", SIGNATURES)
def test_names_agree(operator):
    """Class, registration, kernel, its arguments and its macros of dtypes, and the front's signature."""
    text = (PROJECT / "op_host" / f"{snake(operator)}.cpp").read_text()
    assert f"class {operator} : public OpDef" in text
    assert f"explicit {operator}(const char *name) : OpDef(name)" in text
    entry = re.search(r'extern "C" __global__ __aicore__ void (\w+)\(([^)]*)\)', kernel(operator))
    assert entry and entry[1] == snake(operator)
    arguments = [part.split()[-1] for part in entry[2].split(",")]
    definitions = [
        each for each in shipped_host().definitions() if (each.operator, each.chip) == (operator, "ascend910")
    ]
    declared = [each.name for each in definitions]
    assert arguments == [*declared, "workspace", "tiling"]
    for dtype in re.findall(r"\bDTYPE_(\w+)", kernel(operator)):
        assert dtype.lower() in declared
    signature = SIGNATURES[operator]
    assert (signature.name, [*signature.inputs, *signature.outputs]) == (operator, declared)
    assert list(signature.rows) == [each.name for each in definitions if "int32" not in each.dtypes]


def test_presets_name_the_chips_and_the_vendor():
    variables = json.loads((PROJECT / "CMakePresets.json").read_text())["configurePresets"][0]["cacheVariables"]
    assert variables["ASCEND_COMPUTE_UNIT"]["value"] == "ascend910;ascend910b;ascend910_93"
    assert f"vendors/{variables['vendor_name']['value']}" in (PROJECT / "install.sh").read_text()


def run_script(script: str, *arguments: str, **environment: str) -> tuple[int, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ASCEND")} | environment
    done = subprocess.run(["bash", str(PROJECT / script), *arguments], env=clean, capture_output=True, text=True)
    return done.returncode, done.stderr


def test_scripts_say_what_is_missing(tmp_path):
    for arguments, environment, message in [
        ((), {}, "ASCEND_HOME_PATH is not set"),
        ((), {"ASCEND_HOME_PATH": str(tmp_path / "gone")}, "is not a directory"),
        ((), {"ASCEND_HOME_PATH": str(tmp_path)}, "this is not a CANN toolkit"),
        (("ascend310p",), {}, "unknown chip 'ascend310p'"),
    ]:
        code, error = run_script("build.sh", *arguments, **environment)
        assert code == 2 and message in error
    if not any((PROJECT / "build_out").glob("custom_opp_*.run")):
        code, error = run_script("install.sh")
        assert code == 2 and "run build.sh" in error
