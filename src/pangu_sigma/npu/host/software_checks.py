"""Checks of the software below MindSpore: CANN with its operators for the chip, and our operators."""

from __future__ import annotations

import re
from pathlib import Path

from pangu_sigma.chips import CHIP_DATA, Chip, family
from pangu_sigma.npu.host.access import Host, toolkit
from pangu_sigma.npu.host.environment import KERNELS_VARIABLE, chip_environment
from pangu_sigma.results import Check, failed, passed
from pangu_sigma.writable import NotWritable, check_folder_writable

CANN_OF = {"2.9": "9.0.0", "2.10": "9.1.0"}
"""Version of CANN for each MindSpore, from tables of MindSpore Transformers: 1.9.0 for 2.9, 2.0.0 for 2.10."""

COMPUTE_UNITS = {"910a": "ascend910", "910b": "ascend910b", "910_93": "ascend910_93"}
"""CANN's name, in folders of compiled operators, for each family of chips."""

_KERNELS = "op_impl/ai_core/tbe/kernel"
_OURS = "pangu_sigma"
"""Name under which `ascend_ops/install.sh` installs our operators: its folder is vendors/pangu_sigma."""


def cann(host: Host, chip: Chip | None) -> Check:
    """Check that CANN is set up in this shell, in a version that fits the installed MindSpore, with its operators for the chip."""
    folder, usable = host.cann, toolkit(host)
    if folder is None or not usable.ok:
        return usable
    info = folder / "compiler/version.info"  # where MindSpore looks, too
    match = re.search(r"^Version=(.+)$", info.read_text(encoding="utf-8"), re.MULTILINE) if info.is_file() else None
    if match is None:
        return failed(f"{folder} does not say its version", f"install the whole toolkit, which has {info}")
    version, required = match[1].strip(), CANN_OF.get(".".join(host.mindspore_version.split(".")[:2]))
    if required and version.split(".")[:2] != required.split(".")[:2]:
        fix = f"install CANN {required} and source its set_env.sh"
        return failed(f"{version} in {folder}; MindSpore {host.mindspore_version} wants {required}", fix)
    if chip is not None:
        unit = COMPUTE_UNITS[family(chip)]
        path = Path(host.environment.get("ASCEND_OPP_PATH") or folder / "opp") / "built-in" / _KERNELS / unit
        if not path.is_dir() or not any(path.iterdir()):
            fix = f"install CANN's package of operators for this chip (Ascend-cann-…-ops) in the toolkit's version; it makes {path}"
            return failed(f"{version} without operators for {unit}: {path} is not there or empty", fix)
    return passed(f"{version} in {folder} (wants {required or 'a version that is not known here'})")


def operators(host: Host, chip: Chip) -> Check:
    """Check that this project's compiled operators (`ascend_ops/`) are where CANN and MindSpore look for them, and that MindSpore
    can compile its calls of them: every rank runs g++ when it starts."""
    fix = "bash ascend_ops/build.sh, bash ascend_ops/install.sh FOLDER, and the two export lines that it prints"
    path = next((p for p in host.paths("ASCEND_CUSTOM_OPP_PATH") if p.name == _OURS), None)
    if path is None and CHIP_DATA[chip].dropless:
        return passed(f"not installed; this chip needs none, but for stages or parallel.gather=ours: {fix}")
    if path is None:
        return failed(f"ASCEND_CUSTOM_OPP_PATH names no folder vendors/{_OURS}", fix)
    unit = COMPUTE_UNITS[family(chip)]
    if path / "op_api/lib" not in host.paths("LD_LIBRARY_PATH"):
        return failed(f"LD_LIBRARY_PATH has no {path}/op_api/lib, which MindSpore loads", fix)
    if not (path / _KERNELS / unit).is_dir():
        return failed(f"{path} was not built for {unit}", f"bash ascend_ops/build.sh {unit}, then install.sh again")
    if host.tool("g++") is None:
        return failed("g++ is not on PATH, and MindSpore runs it on every rank for each operator", "install g++")
    header = Path(host.environment.get("ASCEND_OPP_PATH", "").split("opp")[0]) / "include/acl/acl_base.h"
    if not header.is_file():
        fix = "install CANN's toolkit, which has it, and source its set_env.sh"
        return failed(f"{header} is not there, which MindSpore's g++ needs for each operator", fix)
    folder = Path(host.environment.get(KERNELS_VARIABLE) or chip_environment(chip)[KERNELS_VARIABLE])
    try:
        check_folder_writable(folder, KERNELS_VARIABLE)
    except NotWritable as problem:
        fix = f"export {KERNELS_VARIABLE}=FOLDER, on a disk of the host"
        return failed(f"MindSpore's g++ needs a folder: {problem}", fix)
    return passed(f"in {path}, built for {unit}; calls of them are compiled into {folder}")
