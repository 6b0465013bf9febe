"""All checks of a host with NPUs, in the order to read them: its NPUs, the software, and the storage of a run folder."""

from __future__ import annotations

import fcntl
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from pangu_sigma.checkpoint.run_folder import run_config
from pangu_sigma.chips import CHIP_DATA, Chip, family
from pangu_sigma.npu.host import software_checks as software
from pangu_sigma.npu.host.access import Host, devices, missing_for_ascend, plugin
from pangu_sigma.npu.host.environment import ChosenChip, chip_in_environment
from pangu_sigma.npu.host.npu_smi import Npu, Unanswered, chip_called, list_npus
from pangu_sigma.results import Check, failed, passed
from pangu_sigma.stored.open import kind_of

_MB = 1 << 20
_SHARED = re.compile(
    r"nfs|lustre|ceph|gpfs|beegfs|cifs|smb|glusterfs|wekafs|juicefs|dpc|ocfs2|gfs2|orangefs|panfs|9p|virtiofs"
)
"""File systems that several hosts may mount at once."""
_OWN_LOCKS = {"nolock", "noflock", "localflock", "local_lock=all", "local_lock=flock"}
"""Mount options of NFS and Lustre with which locks are local to this host, or not available."""


def npus_if_any(host: Host | None = None) -> Check:
    """Check the NPUs and their software. A machine without NPUs passes, since everything runs on the CPU. host: None for this
    machine."""
    host = host or Host()
    devices_text = f"{len(host.npus)} devices" if host.npus else "no device"
    state = f"{devices_text}, CANN in {host.cann}" if host.cann else f"{devices_text}, no CANN"
    if not host.npus:
        return Check("Ascend", True, f"{state}; runs use the CPU")
    missing = missing_for_ascend(host)
    return Check("Ascend", False, f"{state}: {missing.state}", missing.fix) if missing else Check("Ascend", True, state)


def node_checks(host: Host, chip: Chip | None = None, run: Path | None = None) -> Iterator[Check]:
    """Check a host of NPUs for a run. Yield a check for each subject, passed or failed.

    chip: type of the NPUs; None for the chip of PANGU_SIGMA_CHIP, else of the run's configuration, else the detected one. run: run
    folder, whose storage is checked too."""
    requested = ChosenChip(chip, "--chip") if chip else chip_in_environment(host.environment)
    configured = None
    if run is not None and kind_of(run) == "run":
        configured = ChosenChip(run_config(run).parallel.chip, f"the configuration of {run}")
    if requested and configured and family(requested.name) != family(configured.name):
        problem = f"{configured.by} says {configured.name}, and {requested.by} {requested.name}"
        fix = "say the same in both: parallel.chip in the configuration, or --chip"
        yield Check("configured chip", False, problem, fix)
    yield from host_checks(host, requested or configured, run)


def host_checks(host: Host, chosen: ChosenChip | None = None, run: Path | None = None) -> Iterator[Check]:
    """Run all checks of an Ascend host. A fault is reported once; checks that it makes impossible are skipped.

    chosen: the expected chip; None for any chip. run: run folder whose storage is checked.
    """
    listed, unanswered_check = list[Npu](), None
    try:
        listed = list_npus(host)
    except Unanswered as error:
        unanswered_check = failed(str(error), error.fix)
    detected_chip = chip_called(listed[0].name) if listed else None
    chip = chosen.name if chosen else detected_chip
    checks: dict[str, Callable[[], Check | None]] = {
        "NPU devices": lambda: _devices(host, listed),
        "npu-smi": lambda: unanswered_check,
        "chip": lambda: _chip(listed, detected_chip, chosen) if listed else None,
        "NPU health": lambda: _health(listed) if listed else None,
        "CANN": lambda: software.cann(host, chip),
        "MindSpore's plugin": lambda: plugin(host),
        "ascend_ops": lambda: software.operators(host, chip) if chip else None,
        "run folder": lambda: _run_folder(host, run) if run else None,
    }
    for name, run_check in checks.items():
        try:
            check = run_check()
        except (OSError, ValueError) as error:  # a file that cannot be read ends one check, not all
            check = failed(str(error), "let this user read it, or repair it")
        if check is not None:
            yield replace(check, name=name)


def _devices(host: Host, listed: list[Npu]) -> Check:
    """Check the device nodes, which are as many as npu-smi lists NPUs. listed: empty if npu-smi failed."""
    check = devices(host)
    if check.ok and listed and len(listed) != len(host.npus):
        fix = "an NPU that only /dev has is lost: see dmesg, restart the host; else pass the others on to the container"
        return failed(f"{len(host.npus)} in /dev, and npu-smi lists {len(listed)}", fix)
    return check


def _chip(listed: list[Npu], detected: Chip | None, chosen: ChosenChip | None) -> Check:
    """Check that the chip is the expected one, and that a server has this number of NPUs and this memory.

    detected: the first NPU's chip. chosen: the expected chip; None for any chip.
    """
    names = sorted({npu.name for npu in listed})
    if len(names) > 1 or detected is None:
        return failed(f"npu-smi names {', '.join(names)}", "use NPUs of one kind: 910A, 910B or 910_93 (Ascend910)")
    data, state = CHIP_DATA[detected], f"{len(listed)} x {CHIP_DATA[detected].title} (npu-smi: {names[0]})"
    if chosen and family(chosen.name) != family(detected):
        fix = f"use --chip {detected}, in the configuration parallel.chip={detected}, or another machine"
        return failed(f"{state}; {chosen.by} says {chosen.name}", fix)
    if len(listed) not in (1, 2, 4, 8, data.per_host):  # of a host, MindSpore takes these numbers
        fix = "an NPU that npu-smi does not list is lost: see dmesg and `lspci -d 19e5:`, restart the host"
        return failed(f"{state}; a server has {data.per_host}", fix)
    planned = chosen.name if chosen else detected
    total, expected = min(npu.total for npu in listed), CHIP_DATA[planned].memory // _MB
    if total < expected:
        fix = "plan for the chip that is here: parallel.chip, whose memory `plan` counts with"
        return failed(f"{state}; HBM of {total} MB, and {planned} is planned with {expected} MB", fix)
    if chosen is None:
        return passed(state)
    same = CHIP_DATA[chosen.name] == data
    return passed(f"{state}, as {chosen.by} says" if same else f"{state}; {chosen.by} says {chosen.name}, another bin")


def _health(listed: list[Npu]) -> Check:
    """Check that the driver reports the health of every NPU as OK."""
    unhealthy = [npu for npu in listed if npu.health != "OK"]
    if not unhealthy:
        return passed(f"all {len(listed)} OK")
    npu = f"-i {unhealthy[0].card} -c {unhealthy[0].chip}"
    fix = f"`npu-smi info -t health {npu}` has the error code; reset it by `npu-smi set -t reset {npu}`; if it stays, leave "
    return failed(", ".join(f"NPU {n.number} {n.health}" for n in unhealthy), fix + "this host out")


def _run_folder(host: Host, folder: Path) -> Check:
    """Check that the run folder is on storage that all nodes share, where a lock that one node holds is seen by the others."""
    if not folder.is_dir():
        return failed(f"{folder} is not there", "make it, or mount the shared storage, on every node at the same path")
    kind, options = _mount_of(host, folder.resolve())
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor_") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        fix = "use a folder that this user may write and whose file system has locks"
        return failed(f"{folder} ({kind}): {error.strerror}", fix)
    if not _SHARED.search(kind):
        fix = "put it on storage that all nodes mount: NFS, Lustre, …"
        return failed(f"{folder} is on {kind}, a disk of this host", fix)
    if local_lock_options := sorted(_OWN_LOCKS & options):
        fix = "mount it with locks that all nodes see: NFS without nolock and local_lock, Lustre with flock"
        return failed(f"{folder} is on {kind}, mounted with {', '.join(local_lock_options)}", fix)
    return passed(f"{folder} on {kind}, with locks")


def _mount_of(host: Host, folder: Path) -> tuple[str, set[str]]:
    """Return the file system and the options of a folder's mount, from /proc/self/mountinfo (see proc(5))."""
    depth, kind, options = -1, "an unknown file system", set[str]()
    table = host.root / "proc/self/mountinfo"
    for line in table.read_text(encoding="utf-8", errors="replace").splitlines() if table.is_file() else ():
        mount, _, file_system = line.partition(" - ")
        _, _, _, _, escaped_point, mount_options, *_ = mount.split()
        point = Path(escaped_point.encode().decode("unicode_escape"))  # blanks are \040
        if folder.is_relative_to(point) and len(point.parts) >= depth:  # the deepest mount point above the folder
            kind, _, super_options = file_system.split(maxsplit=2)
            depth, options = len(point.parts), {*mount_options.split(","), *super_options.split(",")}
    return kind, options
