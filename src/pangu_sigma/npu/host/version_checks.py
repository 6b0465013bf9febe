"""Checks of the software below MindSpore: driver, firmware, CANN, kernels of the chip, MindSpore's plugin, and our operators."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pangu_sigma.check import Check, failed, passed
from pangu_sigma.chips import CHIP_DATA, Chip, family
from pangu_sigma.npu.host.access import Host, ToolError, assignments
from pangu_sigma.npu.host.environment import KERNELS_VARIABLE, chip_environment
from pangu_sigma.npu.host.npu_smi import Npu
from pangu_sigma.npu.host.npus import cann, missing_cann, missing_plugin
from pangu_sigma.writable import NotWritable, check_folder_writable


@dataclass(frozen=True)
class Suite:
    """Versions of CANN and NPU driver for one MindSpore release, from tables of MindSpore Transformers. driver: None if not listed.

    takes: versions of CANN with which MindSpore loads without a warning (its own `run_check/_check_version.py`).
    """

    cann: str
    driver: str | None
    takes: tuple[str, ...]


SUITES = {
    "2.9": Suite("9.0.0", "26.0.RC1", ("8.2", "8.3", "8.5", "9.0")),
    "2.10": Suite("9.1.0", None, ("8.2", "8.3", "8.5", "9.0", "9.1")),
}
"""Software suite by MindSpore version. CANN and driver are from MindSpore Transformers' tables: 1.9.0 for 2.9, 2.0.0 for 2.10."""

COMPUTE_UNITS = {"910a": "ascend910", "910b": "ascend910b", "910_93": "ascend910_93"}
"""CANN's name, in folders of compiled operators, for each family of chips."""

_KERNELS = "built-in/op_impl/ai_core/tbe/kernel"
_OURS = "pangu_sigma"
"""Name under which `ascend_ops/install.sh` installs our operators: its folder is vendors/pangu_sigma."""


def driver(host: Host, chip: Chip | None) -> Check:
    """Check that the NPU driver is not older than the one listed for this MindSpore (`Suite`); for 910A any version passes, because
    none is listed."""
    file = f"{_driver_folder(host)}/driver/version.info"
    version = host.values(file).get("Version")
    suite = _suite(host)
    if version is None:
        fix = "install the Ascend driver, or mount /usr/local/Ascend/driver into the container"
        return failed(f"no version in {file}", fix)
    if chip == "910a" or suite is None or suite.driver is None:
        return passed(f"{version} (none is listed for this chip and this MindSpore)")
    if _numbers(version)[:2] < _numbers(suite.driver)[:2]:
        fix = f"install driver and firmware {suite.driver} or later, first the driver"
        return failed(f"{version}; MindSpore {host.mindspore_version} is listed with {suite.driver}", fix)
    return passed(f"{version} (wants {suite.driver} or later)")


def firmware(host: Host, listed: list[Npu]) -> Check:
    """Check the version of the NPU firmware against the range that the driver's version file names."""
    folder = _driver_folder(host)
    compatible = host.values(f"{folder}/driver/version.info").get("compatible_version_fw", "")
    version = host.values(f"{folder}/firmware/version.info").get("Version")
    version = version or _board(host, listed).get("Firmware Version", "")
    limits = re.findall(r"[\d.]+", compatible)
    if not _numbers(version):
        return passed(f"not known here: a container without {folder}/firmware")
    if len(limits) == 2 and not _numbers(limits[0]) <= _numbers(version)[:3] <= _numbers(limits[1]):
        fix = "install the firmware of the driver's release, then restart the host"
        return failed(f"{version}; the driver takes {limits[0]} to {limits[1]}", fix)
    return passed(f"{version} (the driver takes {' to '.join(limits) or 'any'})")


def toolkit(host: Host) -> Check:
    """Check that CANN is set up in this shell, in a version that fits the installed MindSpore (`Suite`)."""
    folder, suite = cann(host.environment), _suite(host)
    if missing := missing_cann(host.environment):
        return failed(missing.problem, missing.fix)
    version = _cann_version(folder) if folder else None
    if version is None:
        fix = "install the whole toolkit: compiler/version.info is where MindSpore looks, too"
        return failed(f"{folder} does not say its version", fix)
    if suite is None:
        return passed(f"{version} in {folder} (which one MindSpore {host.mindspore_version} wants is not known)")
    if _numbers(version)[:2] != _numbers(suite.cann)[:2]:
        taken = ", ".join(suite.takes)
        fix = f"install CANN {suite.cann} and source its set_env.sh (MindSpore itself loads with {taken})"
        return failed(f"{version} in {folder}; MindSpore {host.mindspore_version} wants {suite.cann}", fix)
    return passed(f"{version} in {folder} (wants {suite.cann})")


def kernels(host: Host, chip: Chip) -> Check:
    """Check that CANN's compiled operators for the chip are installed."""
    folder, unit = cann(host.environment), COMPUTE_UNITS[family(chip)]
    path = Path(host.environment.get("ASCEND_OPP_PATH") or (folder or Path("CANN")) / "opp") / _KERNELS / unit
    if path.is_dir() and any(path.iterdir()):
        return passed(f"{unit} in {path}")
    fix = f"install CANN's package of operators for this chip (Ascend-cann-…-ops), of the toolkit's version; it makes {path}"
    return failed(f"none for {unit}: {path} is not there or empty", fix)


def plugin(host: Host) -> Check:
    """Check that MindSpore has its Ascend plugin."""
    if missing := missing_plugin(host.mindspore):
        return failed(missing.problem, missing.fix)
    return passed(f"of MindSpore {host.mindspore_version}")


def operators(host: Host, chip: Chip) -> Check:
    """Check that this project's compiled operators (`ascend_ops/`) are where CANN and MindSpore look for them, and that MindSpore
    can compile its calls of them: every rank runs g++ when it starts."""
    fix = "bash ascend_ops/build.sh, bash ascend_ops/install.sh FOLDER, and the two export lines that it prints"
    path = next((p for p in _paths(host, "ASCEND_CUSTOM_OPP_PATH") if p.name == _OURS), None)
    if path is None and CHIP_DATA[chip].dropless:
        return passed(f"not installed; this chip needs none, but for stages or parallel.gather=ours: {fix}")
    if path is None:
        return failed(f"ASCEND_CUSTOM_OPP_PATH names no folder vendors/{_OURS}", fix)
    unit = COMPUTE_UNITS[family(chip)]
    if not (path / "op_api/lib").is_dir():
        return failed(f"{path} has no op_api/lib: it was moved or removed", fix)
    if path / "op_api/lib" not in _paths(host, "LD_LIBRARY_PATH"):
        return failed(f"LD_LIBRARY_PATH has no {path}/op_api/lib, which MindSpore loads", fix)
    if not (path / "op_impl/ai_core/tbe/kernel" / unit).is_dir():
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
        return failed(
            f"MindSpore's g++ needs a folder: {problem}", f"export {KERNELS_VARIABLE}=FOLDER, on a disk of the host"
        )
    return passed(f"in {path}, built for {unit}; calls of them are compiled into {folder}")


def graph_level(host: Host, chip: Chip) -> Check:
    """Check that nothing makes MindSpore run the step as one graph, level O2, which has no operators on the host."""
    for name in ("RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH"):
        if host.environment.get(name):
            return failed(
                f"{name} is set: MindSpore takes O2, one graph without operators on the host", f"unset {name}"
            )
    alone = "; MindSpore alone would take O2 for 910A" if family(chip) == "910a" else ""
    return passed(f"O0, kernel by kernel, which the step asks for{alone}")


def _suite(host: Host) -> Suite | None:
    return SUITES.get(".".join(host.mindspore_version.split(".")[:2]))


def _driver_folder(host: Host) -> str:
    """Return the folder of driver and firmware, which the driver's installer records."""
    return host.values("/etc/ascend_install.info").get("Driver_Install_Path_Param", "/usr/local/Ascend")


def _board(host: Host, listed: list[Npu]) -> dict[str, str]:
    """Return npu-smi's `key : value` lines for the first NPU's board; empty without one."""
    if not listed:
        return {}
    try:
        text = host.run("npu-smi", "info", "-t", "board", "-i", str(listed[0].card))
    except ToolError:
        return {}
    return assignments(text.replace(" : ", "="))


def _cann_version(folder: Path) -> str | None:
    """Return a toolkit's version, from the file that MindSpore reads, else from the installer's."""
    installed = sorted(folder.glob("*-linux/ascend_toolkit_install.info"))
    for file, key in ((folder / "compiler/version.info", "Version"), *((f, "version") for f in installed)):
        try:
            version = assignments(file.read_text(encoding="utf-8")).get(key)
        except OSError:
            continue
        if version:
            return version
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers at the start of a version: 26.0.RC1 → (26, 0)."""
    begin = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, begin[0].split("."))) if begin else ()


def _paths(host: Host, variable: str) -> list[Path]:
    return [Path(path) for path in host.environment.get(variable, "").split(os.pathsep) if path]
