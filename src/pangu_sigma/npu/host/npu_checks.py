"""Checks of the NPUs themselves: each is present, open to this user, of the expected chip, and healthy."""

from __future__ import annotations

from pangu_sigma.chips import CHIP_DATA, Chip, family
from pangu_sigma.npu.host.access import Host
from pangu_sigma.npu.host.npu_smi import Npu, chip_called
from pangu_sigma.npu.host.npus import DRIVER_NODES, missing_devices, npus
from pangu_sigma.results import Check, failed, passed

_MB = 1 << 20
_WHOLE = (1, 2, 4)
"""Numbers of NPUs, besides a whole server's, that MindSpore supports on one host."""


def devices(host: Host, listed: list[Npu]) -> Check:
    """Check that /dev has the device nodes of the NPUs and their driver, open to this user, and as many NPUs as npu-smi lists.
    listed: npu-smi's NPUs; empty if npu-smi failed."""
    dev = host.path("/dev")
    nodes = npus(dev)
    absent = [node for node in DRIVER_NODES if nodes and not (dev / node).exists()]
    if problem := missing_devices(dev):
        return failed(problem.problem, problem.fix)
    if absent:
        fix = "load the driver (`npu-smi info` does), or pass them on to the container: --device /dev/NAME"
        return failed(f"{len(nodes)} NPUs, but /dev has no {', '.join(absent)}", fix)
    if listed and len(listed) != len(nodes):
        fix = "an NPU that only /dev has is lost: see dmesg, restart the host; else pass the others on to the container"
        return failed(f"{len(nodes)} in /dev, and npu-smi lists {len(listed)}", fix)
    return passed(f"{len(nodes)}, open to this user")


def chip(listed: list[Npu], wanted: Chip | None, by: str) -> Check:
    """Check that the chip is the expected one, and that the number of NPUs and their memory are those of a server.

    wanted: the expected chip; None for any chip. by: origin of `wanted`, for messages.
    """
    names = sorted({npu.name for npu in listed})
    known = chip_called(names[0])
    if len(names) > 1 or known is None:
        return failed(f"npu-smi names {', '.join(names)}", "use NPUs of one kind: 910A, 910B or 910_93 (Ascend910)")
    data, found = CHIP_DATA[known], f"{len(listed)} x {CHIP_DATA[known].title} (npu-smi: {names[0]})"
    total = min(npu.total for npu in listed)
    expected = CHIP_DATA[wanted or known].memory // _MB
    if wanted is not None and family(wanted) != family(known):
        fix = f"use --chip {known}, in the configuration parallel.chip={known}, or another machine"
        return failed(f"{found}; {by} says {wanted}", fix)
    if len(listed) not in (*_WHOLE, 8, data.per_host):
        fix = "an NPU that npu-smi does not list is lost: see dmesg and `lspci -d 19e5:`, restart the host"
        return failed(f"{found}; a server has {data.per_host}", fix)
    if total < expected:
        fix = "plan for the chip that is here: --chip, whose memory `plan` counts with"
        return failed(f"{found}; HBM of {total} MB, and {wanted or known} is planned with {expected} MB", fix)
    if wanted is None:
        return passed(found)
    return passed(
        f"{found}, as {by} says" if CHIP_DATA[wanted] == data else f"{found}; {by} says {wanted}, another bin"
    )


def health(listed: list[Npu]) -> Check:
    """Check that the driver reports the health of every NPU as OK."""
    ill = [npu for npu in listed if npu.health != "OK"]
    if ill:
        one = ill[0]
        fix = (
            f"`npu-smi info -t health -i {one.card} -c {one.chip}` has the error code; reset it by `npu-smi set -t reset -i "
            f"{one.card} -c {one.chip}`; if it stays, leave this host out"
        )
        return failed(", ".join(f"NPU {npu.number} {npu.health}" for npu in ill), fix)
    return passed(f"all {len(listed)} OK")
