"""All checks of a host with NPUs, in the order to read them: its NPUs, the software, and the storage of a run folder.

What the vendor's tools say themselves is not repeated: `npu-smi info` has the health and the memory of each NPU, MindSpore warns of
a CANN of another version, and g++ names a missing header.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from pangu_sigma.checkpoint.run_folder import run_config
from pangu_sigma.chips import CHIP_DATA, Chip, family
from pangu_sigma.npu.host.access import COMPUTE_UNITS, Host, devices, missing_for_ascend, other_family, plugin, toolkit
from pangu_sigma.npu.host.environment import NamedChip, chip_in_environment
from pangu_sigma.results import Check, failed, passed
from pangu_sigma.stored.open import kind_of

_KERNELS = "op_impl/ai_core/tbe/kernel"
_OURS = "pangu_sigma"
"""Name under which `ascend_ops/install.sh` installs our operators: its folder is vendors/pangu_sigma."""
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
    """Check a host of NPUs for a run. Yield a check for each subject, passed or failed; a check that another fault makes impossible
    is left out.

    chip: expected chip; None for the chip of PANGU_SIGMA_CHIP. The chip of the run's configuration is expected, too. run: run
    folder, whose storage is checked.
    """
    expected_chip = NamedChip(chip, "--chip") if chip else chip_in_environment(host.environment)
    named_chips = [expected_chip] if expected_chip else []
    if run is not None and kind_of(run) == "run":
        named_chips.append(NamedChip(run_config(run).parallel.chip, f"parallel.chip of {run}"))
    planned_chip = named_chips[0].name if named_chips else host.chip
    checks: dict[str, Callable[[], Check | None]] = {
        "NPU devices": lambda: devices(host),
        "chip": lambda: _chip(host, named_chips) if host.npus else None,
        "CANN": lambda: _cann(host, planned_chip),
        "MindSpore's plugin": lambda: plugin(host),
        "ascend_ops": lambda: _operators(host, planned_chip) if planned_chip else None,
        "run folder": lambda: _run_folder(host, run) if run else None,
    }
    for name, run_check in checks.items():
        try:
            check = run_check()
        except OSError as error:  # a file that cannot be read ends one check, not all
            check = failed(str(error), "let this user read it, or repair it")
        if check is not None:
            yield replace(check, name=name)


def _chip(host: Host, named_chips: list[NamedChip]) -> Check:
    """Check that the NPUs are of one family, and of the family of every expected chip."""
    detected = host.chip
    if detected is None:
        fix = "use NPUs of one kind: 910A, 910B or 910_93"
        return failed("the PCI devices name no family that is known here, or several", fix)
    for named in named_chips:
        if (other := other_family(host, named.name, named.by)) is not None:
            return other
    state = f"{len(host.npus)} NPUs of the family {family(detected)}"
    return passed(f"{state}, as {named_chips[0].by} says" if named_chips else state)


def _cann(host: Host, chip: Chip | None) -> Check:
    """Check that CANN is set up in this shell, with its operators for the chip. chip: None to leave out its operators."""
    folder, toolkit_check = host.cann, toolkit(host)
    if folder is None or not toolkit_check.ok or chip is None:
        return toolkit_check
    unit = COMPUTE_UNITS[family(chip)]
    path = Path(host.environment.get("ASCEND_OPP_PATH") or folder / "opp") / "built-in" / _KERNELS / unit
    if not path.is_dir() or not any(path.iterdir()):
        fix = f"install CANN's package of operators for this chip (Ascend-cann-…-ops) in the toolkit's version; it makes {path}"
        return failed(f"{folder} has no operators for {unit}: {path} is not there or empty", fix)
    return passed(f"{folder}, with operators for {unit}")


def _operators(host: Host, chip: Chip) -> Check:
    """Check that this project's compiled operators (`ascend_ops/`) are where CANN and MindSpore look for them."""
    fix = "bash ascend_ops/build.sh, bash ascend_ops/install.sh FOLDER, and the two export lines that it prints"
    path = next((p for p in host.paths("ASCEND_CUSTOM_OPP_PATH") if p.name == _OURS), None)
    # in the dropless layout CANN's operators gather rows; with pipeline stages every chip has the other layout (`dispatch_layout`)
    needs_own_operators = not CHIP_DATA[chip].dropless
    if path is None and not needs_own_operators:
        return passed(f"not installed; needed on this chip only for stages or parallel.gather=ours: {fix}")
    if path is None:
        return failed(f"ASCEND_CUSTOM_OPP_PATH names no folder vendors/{_OURS}", fix)
    unit = COMPUTE_UNITS[family(chip)]
    if path / "op_api/lib" not in host.paths("LD_LIBRARY_PATH"):
        return failed(f"LD_LIBRARY_PATH has no {path}/op_api/lib, which MindSpore loads", fix)
    if not (path / _KERNELS / unit).is_dir():
        return failed(f"{path} was not built for {unit}", f"bash ascend_ops/build.sh {unit}, then install.sh again")
    return passed(f"in {path}, built for {unit}")


def _run_folder(host: Host, folder: Path) -> Check:
    """Check that the run folder is on storage that all nodes share, and that other nodes see the locks of this one."""
    if not folder.is_dir():
        return failed(f"{folder} is not there", "make it, or mount the shared storage, on every node at the same path")
    command = ["findmnt", "--noheadings", "--output", "FSTYPE,OPTIONS", "--target", str(folder)]
    try:
        mount = subprocess.run(command, env=dict(host.environment), capture_output=True, text=True).stdout
    except FileNotFoundError:
        return failed("findmnt is not on PATH", "install util-linux")
    file_system, _, options = mount.strip().partition(" ")
    if not _SHARED.search(file_system):
        fix = "put it on storage that all nodes mount: NFS, Lustre, …"
        return failed(f"{folder} is on {file_system or 'an unknown file system'}, a disk of this host", fix)
    if local_lock_options := sorted(_OWN_LOCKS & {*options.strip().split(",")}):
        fix = (
            "mount it with locks that all nodes see: NFS without nolock and local_lock=all or flock, Lustre with flock"
        )
        return failed(f"{folder} is on {file_system}, mounted with {', '.join(local_lock_options)}", fix)
    return passed(f"{folder} on {file_system}, mounted with locks")
