"""The NPUs of this machine and what drives them, CANN and MindSpore's plugin: what can be seen of them without loading any."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_CANN_VARIABLES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")
"""Environment variables that CANN's set_env.sh sets to its folder."""
DRIVER_NODES = ("davinci_manager", "devmm_svm", "hisi_hdc")
"""Device nodes of the driver itself: its manager, memory shared with the host, and the channel to the NPUs."""

DEV = Path("/dev")


class Missing(NamedTuple):
    """Something without which NPUs do not run. fix: what to do."""

    problem: str
    fix: str


def npus(dev: Path = DEV) -> list[str]:
    """Names of the driver's device nodes, one for each NPU."""
    return sorted(path.name for path in dev.glob("davinci[0-9]*"))


def cann(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of CANN that this shell has set up; None if it has set up none. The folder may be gone."""
    return next((Path(environment[name]) for name in _CANN_VARIABLES if environment.get(name)), None)


def missing_for_ascend(
    dev: Path = DEV, environment: Mapping[str, str] = os.environ, mindspore: Path | None = None
) -> Missing | None:
    """The first thing that keeps this machine from running on NPUs; None if nothing does, as far as files tell.

    mindspore: folder of the package; None: the installed one.
    """
    return missing_devices(dev) or missing_cann(environment) or missing_plugin(mindspore)


def missing_devices(dev: Path = DEV) -> Missing | None:
    """What keeps this user from the NPUs."""
    devices = npus(dev)
    if not devices:
        return Missing(
            f"no NPU: {dev} has no davinci0", "install the Ascend driver, or pass the devices on to the container"
        )
    wanted = [*devices, *(name for name in DRIVER_NODES if (dev / name).exists())]
    closed = [name for name in wanted if not os.access(dev / name, os.R_OK | os.W_OK)]
    if closed:
        return Missing(f"{', '.join(closed)}: no permission", "add this user to the group of the driver, HwHiAiUser")
    return None


def missing_cann(environment: Mapping[str, str] = os.environ) -> Missing | None:
    """What keeps programs of this shell from CANN."""
    toolkit = cann(environment)
    if toolkit is None:
        return Missing(
            "no CANN: neither " + " nor ".join(_CANN_VARIABLES) + " is set",
            "install CANN, then `source <its folder>/set_env.sh` in this shell",
        )
    if not any(toolkit.glob("**/libascendcl.so")):
        return Missing(
            f"{toolkit} has no libascendcl.so",
            "CANN was moved or removed: source the set_env.sh of the one that is installed",
        )
    return None


def missing_plugin(mindspore: Path | None = None) -> Missing | None:
    """What MindSpore lacks for Ascend. mindspore: folder of the package; None: the installed one."""
    plugin = (mindspore or _mindspore()) / "lib" / "plugin"
    if not any(plugin.glob("libmindspore_ascend.so*")):
        return Missing(
            f"MindSpore has no plugin for Ascend in {plugin}",
            "install the wheel of MindSpore for this CPU and Python that has it: pip install -r requirements.txt",
        )
    return None


def _mindspore() -> Path:
    found = importlib.util.find_spec("mindspore")  # finds, and does not import
    return Path(found.origin).parent if found and found.origin else Path("mindspore")
