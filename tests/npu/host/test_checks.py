"""Hosts made of files and fake tools: a healthy one of each chip passes; of a broken one the fault is named, with what to do."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.ascend_host import AscendHost

from pangu_sigma.check import Check
from pangu_sigma.npu.host import access
from pangu_sigma.npu.host.access import Host
from pangu_sigma.npu.host.checks import host_checks

NFS = "36 25 0:32 / {mount} rw,relatime shared:9 - nfs4 10.0.0.9:/runs rw,vers=4.1,hard,local_lock=none,addr=10.0.0.9\n"
DISK = "25 1 253:1 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard\n"


def failed(host: Host, **options) -> list[Check]:
    return [check for check in host_checks(host, **options) if not check.ok]


def shared(machine: AscendHost, more: str = NFS) -> Path:
    """A run folder of the machine on storage that nodes share."""
    folder = machine.root / "shared runs"
    folder.mkdir()
    mount = str(folder).replace(" ", "\\040")
    machine.write("proc/self/mountinfo", DISK + more.format(mount=mount))
    return folder


@pytest.mark.parametrize(("chip", "npus"), [("910a", 8), ("910b", 8), ("910_93", 16), ("910b4", 1)])
def test_a_healthy_host_passes_every_check(tmp_path, chip, npus):
    machine = AscendHost(tmp_path, chip, npus)
    checks = list(host_checks(machine.host, chip, "--chip", shared(machine)))
    assert [check for check in checks if not check.ok] == []
    assert [check.name for check in checks] == [
        *("NPU devices", "driver", "firmware", "chip", "NPU health", "free HBM", "CANN", "MindSpore's plugin"),
        *("CANN's operators", "ascend_ops", "graph level", "hccn.conf", "NPU links", "NPU TLS", "HCCL interface"),
        *("HCCL ports", "connections", "cores", "large pages", "clock", "run folder"),
    ]
    found = {check.name: check.found for check in checks}
    assert found["chip"].startswith(f"{npus} x Ascend 910")
    assert found["chip"].endswith("as --chip says")
    assert found["hccn.conf"].startswith(f"{npus} addresses, 10.20.0.2")
    assert found["HCCL interface"] == "enp61s0f0 (10.0.0.5), HCCL_SOCKET_IFNAME not set"
    assert "nfs4, with locks" in found["run folder"]
    assert found["graph level"].startswith("O0, kernel by kernel, which the step asks for")
    assert found["graph level"].endswith("MindSpore alone would take O2 for 910A") == (chip == "910a")
    assert found["ascend_ops"].endswith(f"calls of them are compiled into {machine.root}/tmp/kernels")


def gone(*names: str) -> Callable[[AscendHost], None]:
    def remove(machine: AscendHost) -> None:
        for name in names:
            machine.remove(name)

    return remove


def file(name: str, text: str) -> Callable[[AscendHost], None]:
    return lambda machine: machine.write(name, text)


def variable(**values: str) -> Callable[[AscendHost], None]:
    return lambda machine: machine.environment.update(values)


DRIVER, FIRMWARE = "usr/local/Ascend/driver/version.info", "usr/local/Ascend/firmware/version.info"
CANN, BAD = "usr/local/Ascend/cann-9.0.0/compiler/version.info", "proc/sys/net/ipv4"
FAULTS = {
    # NPUs and their nodes
    "a container without devices": (
        gone("dev/davinci0", "dev/davinci1"),
        "NPU devices: no NPU: .*/dev has no davinci0; install the Ascend driver, or pass the devices on to the container",
    ),
    "a container without the driver's nodes": (
        gone("dev/devmm_svm", "dev/hisi_hdc"),
        "NPU devices: 2 NPUs, but /dev has no devmm_svm, hisi_hdc; .*--device",
    ),
    "npu-smi is not here": (gone("tools/npu-smi"), "npu-smi: npu-smi is not on PATH; install the Ascend driver"),
    "npu-smi fails": (
        lambda m: m.tool("npu-smi", "echo 'dcmi module initialize failed. ret is -8005' >&2; exit 1"),
        "npu-smi: npu-smi info ended with 1, saying: dcmi module initialize failed. ret is -8005; mend what npu-smi names",
    ),
    "npu-smi hangs": (
        lambda m: m.tool("npu-smi", "exec /bin/sleep 60"),
        "npu-smi: npu-smi info did not answer in 0.3 s; the driver hangs: see dmesg, restart the host",
    ),
    "npu-smi lists nothing": (
        lambda m: m.npu_smi(npus=0),
        "npu-smi: npu-smi info lists no NPU; load the driver",
    ),
    "another chip than asked for": (
        lambda m: m.npu_smi(name="910ProB", total=32768),
        r"chip: 2 x Ascend 910A \(npu-smi: 910ProB\); --chip says 910b; use --chip 910a",
    ),
    "the first family's fast bin, which is called 910B": (
        lambda m: m.npu_smi(name="910B", total=32768),
        "chip: 2 x Ascend 910A .*; --chip says 910b; use --chip 910a",
    ),
    "a chip of another kind": (
        lambda m: m.npu_smi(name="310P3", total=44280),
        "chip: npu-smi names 310P3; use NPUs of one kind",
    ),
    "the bin with half the memory": (
        lambda m: m.npu_smi(name="910B4", total=32768),
        "chip: 2 x Ascend 910B4 .*HBM of 32768 MB, and 910b is planned with 65536 MB; plan for the chip that is here",
    ),
    "an NPU with an alarm": (
        lambda m: m.npu_smi(health={0: "Alarm", 1: "Warning"}),
        "NPU health: NPU 0 Alarm, NPU 1 Warning; `npu-smi info -t health -i 0 -c 0`.*reset",
    ),
    "somebody else on an NPU": (
        lambda m: m.npu_smi(used={1: 60148}, processes={1: 4038460}),
        "free HBM: NPU 1: 60148 of 65536 MB in use; end processes 4038460",
    ),
    # versions
    "an old driver": (
        file(DRIVER, "Version=25.5.1\ncompatible_version_fw=[7.0.0,8.9.9]\n"),
        "driver: 25.5.1; MindSpore 2.9.0 is listed with 26.0.RC1; install driver and firmware 26.0.RC1 or later",
    ),
    "no driver": (
        gone(DRIVER),
        "driver: no version in /usr/local/Ascend/driver/version.info; install the Ascend driver",
    ),
    "firmware that the driver does not take": (
        file(FIRMWARE, "Version=1.84.15.1.230\npackage_version=22.0.4\n"),
        "firmware: 1.84.15.1.230; the driver takes 7.0.0 to 8.9.9; install the firmware of the driver's release",
    ),
    "a shell without CANN": (
        lambda m: m.environment.pop("ASCEND_HOME_PATH"),
        "CANN: no CANN: neither ASCEND_TOOLKIT_HOME nor ASCEND_HOME_PATH is set; .*set_env.sh",
    ),
    "another CANN": (
        file(CANN, "Version=8.5.0.2.220\nversion_dir=8.5.0\n"),
        "CANN: 8.5.0.2.220 in .*; MindSpore 2.9.0 wants 9.0.0; install CANN 9.0.0",
    ),
    "CANN without the operators of this chip": (
        lambda m: shutil.rmtree(m.cann / "opp/built-in/op_impl/ai_core/tbe/kernel/ascend910b"),
        "CANN's operators: none for ascend910b: .*; install CANN's package of operators for this chip",
    ),
    "MindSpore without its plugin": (
        gone("mindspore/lib/plugin/libmindspore_ascend.so.2"),
        "MindSpore's plugin: MindSpore has no plugin for Ascend in .*; install the wheel",
    ),
    "our operators for another chip": (
        lambda m: shutil.rmtree(m.root / "opt/operators/vendors/pangu_sigma/op_impl/ai_core/tbe/kernel/ascend910b"),
        "ascend_ops: .* was not built for ascend910b; bash ascend_ops/build.sh ascend910b",
    ),
    "our operators not loaded": (
        variable(LD_LIBRARY_PATH="/usr/lib"),
        "ascend_ops: LD_LIBRARY_PATH has no .*/op_api/lib.*; .*the two export lines",
    ),
    "no compiler for calls of our operators": (
        gone("tools/g++"),
        r"ascend_ops: g\+\+ is not on PATH, and MindSpore runs it on every rank for each operator; install g\+\+",
    ),
    "no header for calls of our operators": (
        gone("usr/local/Ascend/cann-9.0.0/include/acl/acl_base.h"),
        "ascend_ops: .*/include/acl/acl_base.h is not there, which MindSpore's g.. needs .*; install CANN's toolkit",
    ),
    "no folder for calls of our operators": (
        variable(MS_COMPILER_CACHE_PATH="/proc/kernels"),
        "ascend_ops: MindSpore's g.. needs a folder: MS_COMPILER_CACHE_PATH /proc/kernels: cannot write into /proc: .*; export MS_",
    ),
    "a rank table, with which MindSpore takes one graph": (
        variable(RANK_TABLE_FILE="/etc/hccl_8p.json"),
        "graph level: RANK_TABLE_FILE is set: MindSpore takes O2, one graph without operators on the host; unset RANK_TABLE_FILE",
    ),
    # networks
    "no hccn.conf": (gone("etc/hccn.conf"), "hccn.conf: /etc/hccn.conf cannot be read; .*hccn_tool.*mount it"),
    "an NPU without an address": (
        lambda m: m.addresses(address_1=""),
        "hccn.conf: no address of NPU 1; hccn_tool -i 1 -ip -s address",
    ),
    "two NPUs with one address": (
        lambda m: m.addresses(address_1="10.20.0.2"),
        "hccn.conf: more than one NPU has 10.20.0.2; give each",
    ),
    "a link that is down": (
        lambda m: m.hccn_tool(link={1: "DOWN"}),
        "NPU links: NPU 1 DOWN; check cable, optical module .*switch port",
    ),
    "hccn_tool is not here": (
        gone("tools/hccn_tool"),
        "NPU links: hccn_tool is not on PATH; install the Ascend driver.*\nNPU TLS: hccn_tool is not on PATH",
    ),
    "TLS on some ports": (
        lambda m: m.hccn_tool(tls={1: 1}),
        "NPU TLS: on for NPU 1, off for the others; make them alike, on all hosts",
    ),
    "an address of another host": (
        variable(HCCL_IF_IP="10.0.0.99"),
        "HCCL interface: HCCL_IF_IP=10.0.0.99 is no address of this host; set it to an address of this host",
    ),
    "an interface that is not there": (
        variable(HCCL_SOCKET_IFNAME="=eth0"),
        "HCCL interface: HCCL_SOCKET_IFNAME==eth0: this host has no such interface .*here: lo, enp61s0f0, docker0",
    ),
    "an interface that is down": (
        file("sys/class/net/enp61s0f0/operstate", "down\n"),
        "HCCL interface: HCCL_SOCKET_IFNAME not set: HCCL takes enp61s0f0, which is down; set HCCL_SOCKET_IFNAME",
    ),
    "ports that the system gives away": (
        file(f"{BAD}/ip_local_reserved_ports", "60000-60015\n"),
        "HCCL ports: 60000 to 60031 may be given away.*; sysctl -w net.ipv4.ip_local_reserved_ports=60000-60031",
    ),
    "a short queue of connections": (
        file("proc/sys/net/core/somaxconn", "128\n"),
        "connections: at most 128 may wait.*; sysctl -w net.core.somaxconn=65535",
    ),
    # the host
    "a container with few cores": (
        file("proc/self/status", "Cpus_allowed_list:\t0-3,96-99\n"),
        "cores: 8 usable, for 2 ranks; each needs 8; give the container or the job all cores",
    ),
    "no taskset": (gone("tools/taskset"), "cores: 192 usable, and taskset.* is not on PATH; install util-linux"),
    "small pages only": (
        file("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n"),
        "large pages: transparent hugepages: never; echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    ),
    "memory set apart": (
        file("proc/meminfo", "MemTotal: 1583000000 kB\nHugePages_Total: 262144\nHugepagesize: 2048 kB\n"),
        "large pages: 512 GiB are set apart as hugepages, of 1509 GiB; sysctl -w vm.nr_hugepages=0",
    ),
    "a clock that nobody keeps": (
        lambda m: m.tool("timedatectl", "echo NTPSynchronized=no"),
        "clock: not synchronised, says timedatectl; run chronyd or ntpd",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named_with_what_to_do(tmp_path, name, monkeypatch):
    monkeypatch.setattr(access, "SECONDS", 0.3 if "hangs" in name else 30)
    machine = AscendHost(tmp_path, npus=2)
    break_it, message = FAULTS[name]
    break_it(machine)
    told = [f"{check.name}: {check.found}; {check.fix}" for check in failed(machine.host, wanted="910b", by="--chip")]
    patterns = message.split("\n")
    assert len(told) == len(patterns), told
    for line, pattern in zip(told, patterns, strict=True):
        assert re.match(pattern, line), f"{line!r} is not {pattern!r}"


def test_an_npu_that_fell_off_the_bus_is_missed(tmp_path):
    machine = AscendHost(tmp_path)
    machine.npu_smi(npus=7)
    nodes, chip = failed(machine.host)
    assert nodes.found == "8 in /dev, and npu-smi lists 7"
    assert "restart the host" in nodes.fix
    machine.remove("dev/davinci7")  # the driver may take its node away, too
    assert failed(machine.host) == [chip]
    assert chip.found == "7 x Ascend 910B3 (npu-smi: 910B3); a server has 8"
    assert "lspci -d 19e5:" in chip.fix


STORAGE = {
    "a disk of the host": (DISK, r"is on ext4, a disk of this host; put it on storage that all nodes mount"),
    "NFS without locks": (
        DISK + NFS.replace("local_lock=none", "nolock"),
        r"is on nfs4, mounted with nolock; mount it with locks that all nodes see",
    ),
    "NFS with locks of this host": (
        DISK + NFS.replace("local_lock=none", "local_lock=flock"),
        r"is on nfs4, mounted with local_lock=flock; mount it with locks",
    ),
    "Lustre with locks of this host": (
        DISK + "40 25 0:40 / {mount} rw - lustre 10.0.0.9@tcp:/fs rw,localflock\n",
        r"is on lustre, mounted with localflock; mount it .*Lustre with flock",
    ),
}


@pytest.mark.parametrize("name", STORAGE)
def test_storage_that_nodes_do_not_share_is_named(tmp_path, name):
    machine = AscendHost(tmp_path, npus=2)
    mounts, message = STORAGE[name]
    (check,) = failed(machine.host, run=shared(machine, mounts.removeprefix(DISK)))
    assert check.name == "run folder"
    assert re.search(message, f"{check.found}; {check.fix}")


def test_a_run_folder_that_is_not_there_or_cannot_be_locked_is_named(tmp_path, monkeypatch):
    machine = AscendHost(tmp_path, npus=2)
    (check,) = failed(machine.host, run=tmp_path / "none")
    assert "none is not there; make it, or mount the shared storage" in f"{check.found}; {check.fix}"

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (check,) = failed(machine.host, run=shared(machine))
    assert "(nfs4): No locks available" in check.found
    assert "--no-lock" in check.fix
    assert list((tmp_path / "shared runs").iterdir()) == [], "nothing stays behind"


def test_a_user_without_permission_is_told_the_group(tmp_path, monkeypatch):
    machine = AscendHost(tmp_path, npus=2)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "davinci1")
    (check,) = failed(machine.host)
    assert (check.name, check.found) == ("NPU devices", "davinci1: no permission")
    assert "HwHiAiUser" in check.fix


def test_a_super_pod_may_do_without_roce(tmp_path):
    machine = AscendHost(tmp_path, "910_93", 4)
    machine.hccn_tool(link=dict.fromkeys(range(4), "DOWN"))
    assert failed(machine.host) == []
    machine.hccn_tool(link={3: "DOWN"})
    assert [check.found for check in failed(machine.host)] == ["NPU 3 DOWN"]


def test_910a_is_on_no_list_and_takes_any_driver(tmp_path):
    machine = AscendHost(tmp_path, "910a", 2)
    machine.write(DRIVER, "Version=23.0.rc2\ncompatible_version_fw=[1.84,8.9.9]\n")
    assert failed(machine.host, wanted="910a") == []


def test_our_operators_are_missed_where_cann_has_none_in_their_place(tmp_path):
    for chip in ("910a", "910b", "910_93"):
        machine = AscendHost(tmp_path / chip, chip, 2)
        machine.environment.pop("ASCEND_CUSTOM_OPP_PATH")
        check = next(check for check in host_checks(machine.host, chip, "--chip") if check.name == "ascend_ops")
        if chip == "910a":
            assert check.found == "ASCEND_CUSTOM_OPP_PATH names no folder vendors/pangu_sigma"
            assert check.fix.startswith("bash ascend_ops/build.sh")
        else:
            assert check.ok
            assert check.found.startswith("not installed; this chip needs none, but for stages or parallel.gather=ours")


def test_firmware_that_only_the_board_knows(tmp_path):
    machine = AscendHost(tmp_path, npus=2)
    machine.remove(FIRMWARE)
    found = {check.name: check.found for check in host_checks(machine.host)}
    assert found["firmware"] == "7.8.0.1.231 (the driver takes 7.0.0 to 8.9.9)"
    machine.npu_smi(firmware="NA")
    found = {check.name: check.found for check in host_checks(machine.host)}
    assert found["firmware"].startswith("not known here")


@pytest.mark.parametrize(
    ("asked", "taken"),
    [("enp", "enp61s0f0"), ("^enp,lo", "docker0"), ("=docker0", "docker0"), ("^=enp61s0f0", "docker0"), ("lo", "lo")],
)
def test_interfaces_are_matched_as_hccl_does(tmp_path, asked, taken):
    machine = AscendHost(tmp_path, npus=2)
    machine.environment["HCCL_SOCKET_IFNAME"] = asked
    found = {check.name: check.found for check in host_checks(machine.host)}
    assert found["HCCL interface"].startswith(f"{taken} (")


def test_what_is_not_as_it_should_be_is_a_failed_check(tmp_path):
    machine = AscendHost(tmp_path, npus=2)
    machine.write("proc/sys/net/core/somaxconn", "many")
    (check,) = failed(machine.host)
    assert check.found.startswith("ValueError")
