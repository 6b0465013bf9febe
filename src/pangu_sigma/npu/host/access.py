"""A host of NPUs as its checks and the launcher see it, and what it lacks for NPUs: from files and without loading libraries."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pangu_sigma.chips import Chip, family
from pangu_sigma.results import Check, failed, passed

COMPUTE_UNITS = {"910a": "ascend910", "910b": "ascend910b", "910_93": "ascend910_93"}
"""CANN's name, in folders of compiled operators, for each family of chips."""

_CANN_VARIABLES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")
"""Environment variables that CANN's set_env.sh sets to its folder."""
_DRIVER_NODES = ("davinci_manager", "devmm_svm", "hisi_hdc")
"""Device nodes of the NPUs' driver: its manager, memory shared with the host, and the channel to the NPUs."""
_PCI_CHIPS: dict[str, Chip] = {
    "pci:v000019E5d0000D801": "910a",
    "pci:v000019E5d0000D802": "910b",
    "pci:v000019E5d0000D803": "910_93",
}
"""Chip by the first letters of a PCI device's `modalias`: vendor and device, by which the scripts of the NPUs' driver tell chips
apart (`lspci -d 19e5:`). Bins of 910B are one device."""


@dataclass(frozen=True)
class Host:
    """Host to check. root: folder that stands for / of the host. environment: variables of this shell. mindspore: folder of
    MindSpore; None for the installed one."""

    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    mindspore: Path | None = None

    @property
    def npus(self) -> list[str]:
        """Names of the NPUs' device nodes, one for each NPU."""
        return sorted(path.name for path in (self.root / "dev").glob("davinci[0-9]*"))

    @property
    def chip(self) -> Chip | None:
        """Chip of the NPUs among the PCI devices; None if there are no NPUs that this project knows, or of several chips."""
        modaliases = [path.read_text() for path in (self.root / "sys/bus/pci/devices").glob("*/modalias")]
        chips = {chip for start, chip in _PCI_CHIPS.items() if any(text.startswith(start) for text in modaliases)}
        return chips.pop() if len(chips) == 1 else None

    @property
    def cann(self) -> Path | None:
        """Folder of CANN from the environment, which may be missing; None if CANN is not set up."""
        return next((Path(self.environment[name]) for name in _CANN_VARIABLES if self.environment.get(name)), None)

    def paths(self, variable: str) -> list[Path]:
        """Return the folders that an environment variable lists."""
        return [Path(path) for path in self.environment.get(variable, "").split(os.pathsep) if path]


def other_family(host: Host, chip: Chip, source: str) -> Check | None:
    """Return a failed check if the NPUs of a host are of another family than `chip`. Return None if they are of its family, or if
    the host's chip is unknown. source: origin of `chip`, such as --chip, for the message."""
    if host.chip is None or family(host.chip) == family(chip):
        return None
    state = f"{len(host.npus)} NPUs of the family {family(host.chip)}; {source} says {chip}"
    return failed(state, f"set it to {host.chip}, or use another machine")


def missing_for_ascend(host: Host) -> Check | None:
    """Return the first failed check of what NPUs need; None if nothing is missing, as far as files tell."""
    return next((check for check in (devices(host), toolkit(host), plugin(host)) if not check.ok), None)


def devices(host: Host) -> Check:
    """Check that /dev has the device nodes of NPUs and of their driver, open to this user."""
    nodes, dev = host.npus, host.root / "dev"
    if not nodes:
        fix = "install the Ascend driver, or pass the devices on to the container"
        return failed(f"no NPU: {dev} has no davinci0", fix)
    if absent := [node for node in _DRIVER_NODES if not (dev / node).exists()]:
        fix = "load the driver (`npu-smi info` does), or pass them on to the container: --device /dev/NAME"
        return failed(f"{len(nodes)} NPUs, but /dev has no {', '.join(absent)}", fix)
    if closed := [name for name in (*nodes, *_DRIVER_NODES) if not os.access(dev / name, os.R_OK | os.W_OK)]:
        return failed(f"{', '.join(closed)}: no permission", "add this user to the group of the driver, HwHiAiUser")
    return passed(f"{len(nodes)}, open to this user")


def toolkit(host: Host) -> Check:
    """Check that programs of this shell can use CANN. MindSpore itself warns of a version of CANN that it does not fit."""
    if host.cann is None:
        fix = "install CANN, then `source <its folder>/set_env.sh` in this shell"
        return failed(f"no CANN: neither {' nor '.join(_CANN_VARIABLES)} is set", fix)
    if not any(host.cann.glob("**/libascendcl.so")):
        fix = "CANN was moved or removed: source the set_env.sh of the one that is installed"
        return failed(f"{host.cann} has no libascendcl.so", fix)
    return passed(str(host.cann))


def plugin(host: Host) -> Check:
    """Check that MindSpore has its Ascend plugin."""
    spec = importlib.util.find_spec("mindspore")  # finds, and does not import
    installed = Path(spec.origin).parent if spec and spec.origin else Path("mindspore")
    folder = (host.mindspore or installed) / "lib" / "plugin"
    if not any(folder.glob("libmindspore_ascend.so*")):
        fix = "install the wheel of MindSpore for this CPU and Python that has it: pip install pangu-sigma"
        return failed(f"MindSpore has no plugin for Ascend in {folder}", fix)
    return passed(f"in {folder}")
