"""Checks of the host around the NPUs: cores, large pages, the clock, and the storage of the run folder."""

from __future__ import annotations

import fcntl
import re
import tempfile
from pathlib import Path

from pangu_sigma.check import Check, failed, passed
from pangu_sigma.npu.host.access import Host, ToolError, listed_numbers

_CORES = 8
"""Smallest number of cores for a rank, whose process compiles, feeds its NPU and updates its share of the experts. Our choice;
Ascend servers have 20 to 24."""
_SET_APART = 0.1
"""Fraction of the memory that may be hugepages reserved at boot, which neither MindSpore nor this project uses. Our choice."""
_SHARED = re.compile(
    r"nfs|lustre|ceph|gpfs|beegfs|cifs|smb|glusterfs|wekafs|juicefs|dpc|ocfs2|gfs2|orangefs|panfs|9p|virtiofs"
)
"""File systems that several hosts may mount at once."""
_OWN_LOCKS = {"nolock", "noflock", "localflock", "local_lock=all", "local_lock=flock"}
"""Mount options of NFS and Lustre with which locks are local to this host, or not available."""


def cores(host: Host, ranks: int) -> Check:
    """Check that the host has enough CPU cores for `ranks` ranks, and report how ranks are bound to them. `msrun` binds ranks near
    their NPUs if it finds taskset and the cpuset of cgroup 1; else the launcher divides the cores in order."""
    allowed = re.search(r"^Cpus_allowed_list:\s*(\S+)", host.read("/proc/self/status") or "", re.MULTILINE)
    usable = len(set(listed_numbers(allowed[1]))) if allowed else 0
    if usable < _CORES * ranks:
        fix = "give the container or the job all cores of the host (docker: no --cpuset-cpus; slurm: --exclusive, --cpus-per-task)"
        return failed(f"{usable} usable, for {ranks} ranks; each needs {_CORES}", fix)
    if host.tool("taskset") is None:
        return failed(
            f"{usable} usable, and taskset, with which msrun binds ranks, is not on PATH", "install util-linux"
        )
    near = host.path("/sys/fs/cgroup/cpuset/cpuset.cpus").exists()
    how = "near its NPU, by msrun" if near else "in order, by the launcher: msrun finds no cpuset of cgroup 1"
    return passed(f"{usable} usable, {usable // max(ranks, 1)} for each rank; bound {how}")


def large_pages(host: Host) -> Check:
    """Check that the host has large pages for the experts: hundreds of GB that a step reads and writes."""
    text = host.read("/sys/kernel/mm/transparent_hugepage/enabled") or ""
    now = re.search(r"\[(\w+)\]", text)
    memory = dict(re.findall(r"^(\w+):\s+(\d+)", host.read("/proc/meminfo") or "", re.MULTILINE))
    apart = int(memory.get("HugePages_Total", 0)) * int(memory.get("Hugepagesize", 0))
    if now and now[1] == "never":
        fix = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled; 4 KiB pages for hundreds of GB make every access slower"
        return failed("transparent hugepages: never", fix)
    if apart > _SET_APART * int(memory.get("MemTotal", 0)):
        fix = "sysctl -w vm.nr_hugepages=0: nothing here uses them, and the experts have that much less"
        return failed(f"{apart >> 20} GiB are set apart as hugepages, of {int(memory['MemTotal']) >> 20} GiB", fix)
    return passed(f"transparent: {now[1] if now else 'not known'}; {apart >> 20} GiB set apart")


def clock(host: Host) -> Check:
    """Check that the host's clock is synchronised, so that logs of several nodes and HCCL's timeouts in them are comparable."""
    for tool, arguments, good in (
        ("timedatectl", ("show", "-p", "NTPSynchronized"), r"NTPSynchronized=yes"),
        ("chronyc", ("tracking",), r"Leap status\s*:\s*Normal"),
    ):
        try:
            output = host.run(tool, *arguments)
        except ToolError:
            continue
        if re.search(good, output):
            return passed(f"synchronised, says {tool}")
        return failed(f"not synchronised, says {tool}", "run chronyd or ntpd against the same server on all nodes")
    return passed("not known: neither timedatectl nor chronyc answers")


def run_folder(host: Host, folder: Path) -> Check:
    """Check that the run folder is on storage that all nodes share, where a lock that one node holds is seen by the others."""
    if not folder.is_dir():
        return failed(f"{folder} is not there", "make it, or mount the shared storage, on every node at the same path")
    kind, options = _mount_of(host, folder.resolve())
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor_") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        fix = "use a folder that this user may write and whose file system has locks, or take care of writers yourself: --no-lock"
        return failed(f"{folder} ({kind}): {error.strerror}", fix)
    if not _SHARED.search(kind):
        return failed(
            f"{folder} is on {kind}, a disk of this host", "put it on storage that all nodes mount: NFS, Lustre, …"
        )
    if own := sorted(_OWN_LOCKS & options):
        fix = "mount it with locks that all nodes see: NFS without nolock and local_lock, Lustre with flock"
        return failed(f"{folder} is on {kind}, mounted with {', '.join(own)}", fix)
    return passed(f"{folder} on {kind}, with locks")


def _mount_of(host: Host, folder: Path) -> tuple[str, set[str]]:
    """Return the file system and the options of a folder's mount, from /proc/self/mountinfo (see proc(5))."""
    best: tuple[int, str, set[str]] = (-1, "an unknown file system", set())
    for line in (host.read("/proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        _, _, _, _, point, options, *_ = left.split()
        kind, _, more = right.split(maxsplit=2)
        mounted = Path(point.encode().decode("unicode_escape"))  # blanks are \040
        if folder.is_relative_to(mounted) and len(mounted.parts) >= best[0]:
            best = (len(mounted.parts), kind, {*options.split(","), *more.split(",")})
    return best[1], best[2]
