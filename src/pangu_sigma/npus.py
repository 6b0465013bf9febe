"""The NPUs of this machine and what drives them, CANN and MindSpore's plugin: what can be seen of them without loading any."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_CANN_VARIABLES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")
"""Environment variables that CANN's set_env.sh sets to its folder."""
_MANAGER = "davinci_manager"
"""Device node of the driver itself."""

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
    devices, toolkit = npus(dev), cann(environment)
    closed = [
        name for name in (*devices, _MANAGER) if (dev / name).exists() and not os.access(dev / name, os.R_OK | os.W_OK)
    ]
    plugin = (mindspore or _mindspore()) / "lib" / "plugin"
    for wrong, problem, fix in (
        (
            not devices,
            f"no NPU: {dev} has no davinci0",
            "install the Ascend driver, or pass the devices on to the container",
        ),
        (closed, f"{', '.join(closed)}: no permission", "add this user to the group of the driver, HwHiAiUser"),
        (
            toolkit is None,
            "no CANN: neither " + " nor ".join(_CANN_VARIABLES) + " is set",
            "install CANN, then `source <its folder>/set_env.sh` in this shell",
        ),
        (
            toolkit is not None and not any(toolkit.glob("**/libascendcl.so")),
            f"{toolkit} has no libascendcl.so",
            "CANN was moved or removed: source the set_env.sh of the one that is installed",
        ),
        (
            not any(plugin.glob("libmindspore_ascend.so*")),
            f"MindSpore has no plugin for Ascend in {plugin}",
            "install the wheel of MindSpore for this CPU and Python that has it: pip install -r requirements.txt",
        ),
    ):
        if wrong:
            return Missing(problem, fix)
    return None


def _mindspore() -> Path:
    found = importlib.util.find_spec("mindspore")  # finds, and does not import
    return Path(found.origin).parent if found and found.origin else Path("mindspore")
