"""Checks of what the hosts of a run share: the network by which their ranks find each other, and the storage of the run folder."""

from __future__ import annotations

import fcntl
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pangu_sigma.npu.host.access import Host
from pangu_sigma.results import Check, failed, passed

_SHARED = re.compile(
    r"nfs|lustre|ceph|gpfs|beegfs|cifs|smb|glusterfs|wekafs|juicefs|dpc|ocfs2|gfs2|orangefs|panfs|9p|virtiofs"
)
"""File systems that several hosts may mount at once."""
_OWN_LOCKS = {"nolock", "noflock", "localflock", "local_lock=all", "local_lock=flock"}
"""Mount options of NFS and Lustre with which locks are local to this host, or not available."""


def interface(host: Host) -> Check:
    """Check the network interface that HCCL uses: given by HCCL_IF_IP, else by HCCL_SOCKET_IFNAME, else the first by name."""
    interfaces = _interfaces(host)
    ip, pattern = host.environment.get("HCCL_IF_IP"), host.environment.get("HCCL_SOCKET_IFNAME")
    if ip:
        owner = next((one.name for one in interfaces if ip in one.addresses), None)
        if owner is None:
            fix = "set it to an address of this host, another one on each; or unset it and set HCCL_SOCKET_IFNAME, the same on all"
            return failed(f"HCCL_IF_IP={ip} is no address of this host", fix)
        return passed(f"{owner}, by HCCL_IF_IP={ip}")
    source = f"HCCL_SOCKET_IFNAME={pattern}" if pattern else "HCCL_SOCKET_IFNAME not set"
    chosen = _in_order([one for one in interfaces if not pattern or _matches(pattern, one.name)])
    names = ", ".join(one.name for one in interfaces) or "none"
    fix = f"set HCCL_SOCKET_IFNAME to the network that all nodes share, exactly: export HCCL_SOCKET_IFNAME==NAME (here: {names})"
    if not chosen:
        return failed(f"{source}: this host has no such interface with an address", fix)
    if not chosen[0].up:
        return failed(f"{source}: HCCL takes {chosen[0].name}, which is down", fix)
    if not pattern and chosen[0].name == "lo":
        return failed(f"{source}: HCCL takes lo, and no other node reaches it", fix)
    return passed(f"{chosen[0].name} ({chosen[0].addresses[0]}), {source}")


def run_folder(host: Host, folder: Path) -> Check:
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


@dataclass(frozen=True)
class _Interface:
    name: str
    up: bool
    addresses: tuple[str, ...]


def _interfaces(host: Host) -> list[_Interface]:
    """Return the interfaces that have an address. Raises ToolError."""
    addresses: dict[str, list[str]] = {}
    for line in host.run("ip", "-o", "addr", "show").splitlines():
        if match := re.match(r"\d+:\s+([^\s@]+)\S*\s+inet6?\s+([^\s/]+)", line):
            addresses.setdefault(match[1], []).append(match[2])
    state = {name: (host.read(f"/sys/class/net/{name}/operstate") or "unknown").strip() for name in addresses}
    return [_Interface(name, state[name] != "down", tuple(ips)) for name, ips in addresses.items()]


def _in_order(interfaces: list[_Interface]) -> list[_Interface]:
    """Sort interfaces as HCCL takes them: others by name, then docker's, then lo."""
    return sorted(interfaces, key=lambda one: (one.name == "lo", one.name.startswith("docker"), one.name))


def _matches(pattern: str, name: str) -> bool:
    """Return True if HCCL_SOCKET_IFNAME allows an interface: `eth,enp` by prefix, `=eth0` exactly; a leading `^` negates."""
    without = pattern.startswith("^")
    rest = pattern.removeprefix("^")
    exact = rest.startswith("=")
    names = [text for text in rest.removeprefix("=").split(",") if text]
    hit = any(name == text if exact else name.startswith(text) for text in names)
    return hit != without
