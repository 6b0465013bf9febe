"""The NPUs of a launch, as its nodes need to know them."""

from __future__ import annotations

import socket
from functools import partial

from pangu_sigma.chips import CHIP_DATA, Chip, family
from pangu_sigma.npu.host.access import Host
from pangu_sigma.npu.host.environment import chip_environment, chip_of_host
from pangu_sigma.ranks.launch import Devices
from pangu_sigma.ranks.processes import LaunchError


def devices_of(chip: Chip) -> Devices:
    """Return the NPUs of ranks that are launched on nodes of this chip."""
    data = CHIP_DATA[chip]
    return Devices(data.title, f"parallel.chip={chip}", data.per_host, chip_environment(chip), partial(_check, chip))


def _check(chip: Chip, ranks: int) -> None:
    """Raise LaunchError if npu-smi lists NPUs of another family, or if this node has fewer NPUs than `ranks`."""
    host, name = Host(), socket.gethostname()
    detected = chip_of_host(host)
    if detected is not None and family(detected.name) != family(chip):
        raise LaunchError(
            f"parallel.chip={chip}: {CHIP_DATA[chip].title} is what this run is made for, and {name} has "
            f"{CHIP_DATA[detected.name].title} ({detected.by}); use parallel.chip={detected.name}, or other nodes"
        )
    found = len(host.npus)
    if found < ranks:
        raise LaunchError(
            f"{name} has {found} NPUs and is to run {ranks} ranks, one on each; take more nodes, or change the "
            "parallel section"
        )
