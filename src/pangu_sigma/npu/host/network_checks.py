"""Checks of the networks: RoCE of the NPUs, for collectives between hosts, and the host's own, by which ranks find each other."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from pangu_sigma.check import Check, failed, passed
from pangu_sigma.npu.host.access import Host, ToolError, assignments, listed_numbers
from pangu_sigma.npu.host.npu_smi import Npu, chip_called

_HCCN = "/etc/hccn.conf"
_PORTS = 32
"""Number of ports of the host that HCCL uses from HCCL_IF_BASE_PORT on (CANN 8.2 and later; 16 before)."""
_BACKLOG = 4096
"""Connections that may wait for node 0, to whose scheduler all ranks connect at once. Linux' own value since 5.4; it was 128."""


def addresses(host: Host, listed: list[Npu]) -> Check:
    """Check that hccn.conf has a network address for each NPU, by which HCCL reaches it."""
    text = host.read(_HCCN)
    if text is None:
        fix = "`hccn_tool -i N -ip -s address A netmask M` for each NPU writes it; in a container, mount it"
        return failed(f"{_HCCN} cannot be read", fix)
    values = assignments(text)
    by_npu = {npu.number: values.get(f"address_{npu.number}", "") for npu in listed}
    without = [number for number, address in by_npu.items() if not _is_address(address)]
    twice = sorted({address for address in by_npu.values() if list(by_npu.values()).count(address) > 1})
    if without:
        fix = f"hccn_tool -i {without[0]} -ip -s address A netmask M"
        return failed(f"no address of NPU {', '.join(map(str, without))}", fix)
    if twice:
        fix = "give each NPU an address of its own: hccn_tool -i N -ip -s address A netmask M"
        return failed(f"more than one NPU has {', '.join(twice)}", fix)
    return passed(f"{len(by_npu)} addresses, {next(iter(by_npu.values()))} …")


def links(host: Host, listed: list[Npu]) -> Check:
    """Check that the RoCE port of each NPU is up. 910_93 hosts pass with no port up, because HCCS connects those of a super pod."""
    states = {npu.number: _answer(host, npu.number, "-link").removeprefix("link status:").strip() for npu in listed}
    down = [number for number, state in states.items() if state != "UP"]
    if len(down) == len(listed) and chip_called(listed[0].name) == "910_93":
        return passed("all down: RoCE is not used, only HCCS of the super pod reaches other hosts")
    if down:
        fix = f"check cable, optical module (hccn_tool -i {down[0]} -optical -g) and switch port; one host alone does not use them"
        return failed(", ".join(f"NPU {number} {states[number] or 'says nothing'}" for number in down), fix)
    return passed(f"all {len(listed)} UP")


def tls(host: Host, listed: list[Npu]) -> Check:
    """Check that TLS is on for the RoCE ports of all NPUs or of none; otherwise connections time out (error EI0006)."""
    matches = {npu.number: re.search(r"tls switch\[(\d)\]", _answer(host, npu.number, "-tls")) for npu in listed}
    switches = {number: match[1] if match else "0" for number, match in matches.items()}  # no certificate: off
    on = [number for number, switch in switches.items() if switch == "1"]
    if on and len(on) < len(listed):
        fix = "make them alike, on all hosts: hccn_tool -i N -tls -s enable 0"
        return failed(f"on for NPU {', '.join(map(str, on))}, off for the others", fix)
    return passed(f"{'on' if on else 'off'} for all; it must be on all hosts")


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


def ports(host: Host) -> Check:
    """Check that Linux does not give HCCL's TCP ports to outgoing connections of the host."""
    first = int(host.environment.get("HCCL_IF_BASE_PORT") or 60_000)
    needed = range(first, first + _PORTS)
    low, high = map(int, (host.read("/proc/sys/net/ipv4/ip_local_port_range") or "0 0").split())
    reserved = host.read("/proc/sys/net/ipv4/ip_local_reserved_ports") or ""
    free = {port for port in needed if not low <= port <= high} | set(listed_numbers(reserved))
    if all(port in free for port in needed):
        return passed(f"{first} to {needed[-1]} are kept free")
    fix = f"sysctl -w net.ipv4.ip_local_reserved_ports={first}-{needed[-1]}, and in /etc/sysctl.conf"
    return failed(f"{first} to {needed[-1]} may be given away: outgoing connections use {low} to {high}", fix)


def backlog(host: Host) -> Check:
    """Check that the host's queue of incoming connections is long enough for node 0 of a launch, to which all ranks connect."""
    value = int(host.read("/proc/sys/net/core/somaxconn") or 0)
    if 0 < value < _BACKLOG:
        fix = "sysctl -w net.core.somaxconn=65535 net.ipv4.tcp_max_syn_backlog=65535 on node 0"
        return failed(f"at most {value} may wait, and all ranks of a run connect to node 0 at once", fix)
    return passed(f"{value or 'an unknown number'} may wait")


def _answer(host: Host, number: int, what: str) -> str:
    """Return hccn_tool's output for an NPU; empty if it refuses. Raises ToolError if the tool is missing."""
    try:
        return host.run("hccn_tool", "-i", str(number), what, "-g").strip()
    except ToolError:
        if host.tool("hccn_tool") is None:
            raise
        return ""


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


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
