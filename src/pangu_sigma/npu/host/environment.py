"""Environment variables that CANN, HCCL and MindSpore read on Ascend, by chip, detection of the chip, and the NPUs of a launch.

A variable that is set already keeps its value. The launcher gives them to its ranks; `run_scripts/ascend_env.sh` takes them from
here for any other shell: as a program this prints them. They are from CANN's documentation of environment variables; none of them
has been measured on a device.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pangu_sigma.chips import CHIP_DATA, CHIP_NAMES, Chip
from pangu_sigma.errors import UserError
from pangu_sigma.npu.host.access import Host, other_family
from pangu_sigma.ranks.launch import Devices
from pangu_sigma.ranks.processes import LaunchError

CHIP_VARIABLE = "PANGU_SIGMA_CHIP"
"""Environment variable with the name of the Ascend chip."""

_EVERY_CHIP = {
    # Seconds that a rank waits for the others when a group is first used. They come there after compiling, which takes minutes and
    # not equally long on all nodes; HCCL's own limit of 120 s would end a run that is only slow to start.
    "HCCL_CONNECT_TIMEOUT": "1800",
    # Seconds that a rank waits in a collective for one that is late: evaluating, or writing its part of a checkpoint. HCCL's own
    # value, a multiple of 68, to which 910A rounds down. The launcher's --hang-timeout is shorter, so that it can name who hangs.
    "HCCL_EXEC_TIMEOUT": "1836",
    # MB that a group of ranks has to send in, and as many to receive in. HCCL's own value, and what `plan` counts with. What a rank
    # sends at once should fit in it: with less, collectives get slower; with more, an NPU has less left for the model.
    "HCCL_BUFFSIZE": "200",
    # CANN writes a log a process, to ~/ascend/log unless told otherwise: on a cluster that is one folder for all nodes' processes.
    "ASCEND_PROCESS_LOG_PATH": str(Path(tempfile.gettempdir()) / f"ascend_log_{os.getuid()}"),
    # Every rank runs g++ for each of our operators, into rank_N of this folder: without it, into ./custom_kernel_meta, which on a
    # cluster is on the storage that all nodes share.
    "MS_COMPILER_CACHE_PATH": str(Path(tempfile.gettempdir()) / f"mindspore_kernels_{os.getuid()}"),
}


class UnknownChip(UserError, ValueError):
    """Error for an unknown name of an Ascend chip."""


@dataclass(frozen=True)
class NamedChip:
    """Chip that the NPUs of a run should have. by: source that named it, such as --chip, for messages."""

    name: Chip
    by: str


def chip_environment(chip: Chip) -> dict[str, str]:
    """Return the environment variables of CANN and HCCL for `chip`. HCCL_SOCKET_IFNAME (such as `=eth0`), the network between
    nodes, is not included: it depends on the machines. Without it HCCL takes the first by name, which may differ."""
    if CHIP_DATA[chip].saturates:
        # 910A has neither infinity nor NaN in its arithmetic: an overflow becomes the largest number and raises a flag, at which
        # MindSpore must look. HCCL_DETERMINISTIC does not exist for it.
        return _EVERY_CHIP | {"MS_ASCEND_CHECK_OVERFLOW_MODE": "SATURATION_MODE"}
    # Sums over ranks in one order, so that a run gives the same bits twice. `false`, HCCL's own value, is faster.
    return _EVERY_CHIP | {"MS_ASCEND_CHECK_OVERFLOW_MODE": "INFNAN_MODE", "HCCL_DETERMINISTIC": "true"}


def chip_in_environment(environment: Mapping[str, str]) -> NamedChip | None:
    """Return the chip that PANGU_SIGMA_CHIP names; None if it is not set. Raises UnknownChip."""
    name = environment.get(CHIP_VARIABLE)
    return NamedChip(known_chip(name, CHIP_VARIABLE), CHIP_VARIABLE) if name else None


def known_chip(name: str, source: str) -> Chip:
    """Return `name` if it is the name of a chip; else raise UnknownChip. source: origin of the name, for the message."""
    for chip in CHIP_NAMES:
        if name == chip:
            return chip
    raise UnknownChip(f"{source}={name} is not a chip: {', '.join(CHIP_NAMES)}")


def devices_of(chip: Chip) -> Devices:
    """Return the NPUs of ranks that are launched on nodes of this chip."""
    data, check_node = CHIP_DATA[chip], partial(_check_node, chip)
    return Devices(data.title, f"parallel.chip={chip}", data.per_host, chip_environment(chip), check_node)


def _check_node(chip: Chip, ranks: int) -> None:
    """Raise LaunchError if this node has NPUs of another family, or fewer of them than `ranks`."""
    host, name = Host(), socket.gethostname()
    if (other := other_family(host, chip, "parallel.chip")) is not None:
        raise LaunchError(f"{name}: {other.state}; {other.fix}")
    npus = len(host.npus)
    if npus < ranks:
        raise LaunchError(
            f"{name} has {npus} NPUs and is to run {ranks} ranks, one on each; take more nodes, or change the parallel section"
        )


def main(arguments: list[str], host: Host) -> str:
    """Return the `export` lines that run_scripts/ascend_env.sh evaluates before ranks start: the environment for a chip, without
    variables that are set already. The first argument names the chip, else PANGU_SIGMA_CHIP, else the PCI devices, else it is 910A.
    Print the chip and its source to standard error. Raises UnknownChip."""
    if arguments and arguments[0]:  # a script that sources ours passes "", so that its own arguments are not ours
        chosen = NamedChip(known_chip(arguments[0], "chip"), "the argument")
    else:
        fallback = NamedChip("910a", f"nobody: neither an argument, nor {CHIP_VARIABLE}, nor a PCI device")
        detected = NamedChip(host.chip, "the PCI devices") if host.chip else fallback
        chosen = chip_in_environment(host.environment) or detected
    print(f"chip {chosen.name} ({CHIP_DATA[chosen.name].title}), said by {chosen.by}", file=sys.stderr)
    variables = {CHIP_VARIABLE: chosen.name} | chip_environment(chosen.name)
    unset = {name: value for name, value in variables.items() if name == CHIP_VARIABLE or name not in host.environment}
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in unset.items())


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:], Host()))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
