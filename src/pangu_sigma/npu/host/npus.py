"""Detection of this machine's NPUs, their driver, CANN and MindSpore's plugin, from files and without loading libraries."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_CANN_VARIABLES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")
"""Environment variables that CANN's set_env.sh sets to its folder."""
DRIVER_NODES = ("davinci_manager", "devmm_svm", "hisi_hdc")
"""Device nodes of the NPUs' driver: its manager, memory shared with the host, and the channel to the NPUs."""

DEV = Path("/dev")


class MissingRequirement(NamedTuple):
    """Requirement of NPUs that this machine lacks. fix: advice to the user."""

    problem: str
    fix: str


def npus(dev: Path = DEV) -> list[str]:
    """Return the names of the NPUs' device nodes, one for each NPU. dev: folder of the device nodes."""
    return sorted(path.name for path in dev.glob("davinci[0-9]*"))


def cann(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder of CANN from the environment of this shell; None if CANN is not set up. The folder may be missing."""
    return next((Path(environment[name]) for name in _CANN_VARIABLES if environment.get(name)), None)


def missing_for_ascend(
    dev: Path = DEV, environment: Mapping[str, str] = os.environ, mindspore: Path | None = None
) -> MissingRequirement | None:
    """Return the first missing requirement for running on NPUs; None if nothing is missing, as far as files tell.

    mindspore: folder of the MindSpore package, by default the installed one.
    """
    return missing_devices(dev) or missing_cann(environment) or missing_plugin(mindspore)


def missing_devices(dev: Path = DEV) -> MissingRequirement | None:
    """Return the reason why this user cannot use NPUs: no NPUs, or no permission; None if NPUs can be used."""
    devices = npus(dev)
    if not devices:
        return MissingRequirement(
            f"no NPU: {dev} has no davinci0", "install the Ascend driver, or pass the devices on to the container"
        )
    nodes = [*devices, *(name for name in DRIVER_NODES if (dev / name).exists())]
    closed = [name for name in nodes if not os.access(dev / name, os.R_OK | os.W_OK)]
    if closed:
        return MissingRequirement(
            f"{', '.join(closed)}: no permission", "add this user to the group of the driver, HwHiAiUser"
        )
    return None


def missing_cann(environment: Mapping[str, str] = os.environ) -> MissingRequirement | None:
    """Return the reason why programs of this shell cannot use CANN; None if CANN can be used."""
    toolkit = cann(environment)
    if toolkit is None:
        return MissingRequirement(
            "no CANN: neither " + " nor ".join(_CANN_VARIABLES) + " is set",
            "install CANN, then `source <its folder>/set_env.sh` in this shell",
        )
    if not any(toolkit.glob("**/libascendcl.so")):
        return MissingRequirement(
            f"{toolkit} has no libascendcl.so",
            "CANN was moved or removed: source the set_env.sh of the one that is installed",
        )
    return None


def missing_plugin(mindspore: Path | None = None) -> MissingRequirement | None:
    """Return the problem if MindSpore lacks its Ascend plugin, else None. mindspore: its folder, by default the installed one."""
    plugin = (mindspore or _mindspore()) / "lib" / "plugin"
    if not any(plugin.glob("libmindspore_ascend.so*")):
        return MissingRequirement(
            f"MindSpore has no plugin for Ascend in {plugin}",
            "install the wheel of MindSpore for this CPU and Python that has it: pip install -r requirements.txt",
        )
    return None


def _mindspore() -> Path:
    spec = importlib.util.find_spec("mindspore")  # finds, and does not import
    return Path(spec.origin).parent if spec and spec.origin else Path("mindspore")
