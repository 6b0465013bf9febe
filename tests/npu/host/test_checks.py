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

from pangu_sigma.npu.host import npu_smi
from pangu_sigma.npu.host.access import Host, missing_for_ascend
from pangu_sigma.npu.host.checks import host_checks
from pangu_sigma.npu.host.environment import ChosenChip
from pangu_sigma.results import Check

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
    checks = list(host_checks(machine.host, ChosenChip(chip, "--chip"), shared(machine)))
    assert [check for check in checks if not check.ok] == []
    names = ("NPU devices", "chip", "NPU health", "CANN", "MindSpore's plugin", "ascend_ops", "run folder")
    assert tuple(check.name for check in checks) == names
    actual = {check.name: check.state for check in checks}
    assert actual["chip"].startswith(f"{npus} x Ascend 910")
    assert actual["chip"].endswith("as --chip says")
    assert "nfs4, with locks" in actual["run folder"]
    assert actual["ascend_ops"].endswith(f"calls of them are compiled into {machine.root}/tmp/kernels")
    assert missing_for_ascend(machine.host) is None
    machine.remove("mindspore/lib/plugin/libmindspore_ascend.so.2")
    assert missing_for_ascend(machine.host).state.startswith("MindSpore has no plugin for Ascend")


def gone(*names: str) -> Callable[[AscendHost], None]:
    def remove(machine: AscendHost) -> None:
        for name in names:
            machine.remove(name)

    return remove


def file(name: str, text: str) -> Callable[[AscendHost], None]:
    return lambda machine: machine.write(name, text)


def variable(**values: str) -> Callable[[AscendHost], None]:
    return lambda machine: machine.environment.update(values)


CANN = "usr/local/Ascend/cann-9.0.0/compiler/version.info"
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
    "another chip than asked for": (
        lambda m: m.npu_smi(name="910ProB", total=32768),
        r"chip: 2 x Ascend 910A \(npu-smi: 910ProB\); --chip says 910b; use --chip 910a",
    ),
    "the first family's fast bin, which is called 910B": (
        lambda m: m.npu_smi(name="910B", total=32768),
        "chip: 2 x Ascend 910A .*; --chip says 910b; use --chip 910a",
    ),
    "the bin with half the memory": (
        lambda m: m.npu_smi(name="910B4", total=32768),
        "chip: 2 x Ascend 910B4 .*HBM of 32768 MB, and 910b is planned with 65536 MB; plan for the chip that is here",
    ),
    "an NPU with an alarm": (
        lambda m: m.npu_smi(health={0: "Alarm", 1: "Warning"}),
        "NPU health: NPU 0 Alarm, NPU 1 Warning; `npu-smi info -t health -i 0 -c 0`.*reset",
    ),
    # versions
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
        "CANN: 9.0.0 without operators for ascend910b: .*; install CANN's package of operators for this chip",
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
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named_with_what_to_do(tmp_path, name, monkeypatch):
    monkeypatch.setattr(npu_smi, "SECONDS", 0.3 if "hangs" in name else 30)
    machine = AscendHost(tmp_path, npus=2)
    break_it, message = FAULTS[name]
    break_it(machine)
    (check,) = failed(machine.host, chosen=ChosenChip("910b", "--chip"))
    assert re.match(message, f"{check.name}: {check.state}; {check.fix}")


def test_an_npu_that_fell_off_the_bus_is_missed(tmp_path):
    machine = AscendHost(tmp_path)
    machine.npu_smi(npus=7)
    nodes, chip = failed(machine.host)
    assert nodes.state == "8 in /dev, and npu-smi lists 7"
    assert "restart the host" in nodes.fix
    machine.remove("dev/davinci7")  # the driver may take its node away, too
    assert failed(machine.host) == [chip]
    assert chip.state == "7 x Ascend 910B3 (npu-smi: 910B3); a server has 8"
    assert "lspci -d 19e5:" in chip.fix


STORAGE = {
    "a disk of the host": (DISK, r"is on ext4, a disk of this host; put it on storage that all nodes mount"),
    "NFS without locks": (
        DISK + NFS.replace("local_lock=none", "nolock"),
        r"is on nfs4, mounted with nolock; mount it with locks that all nodes see",
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
    assert re.search(message, f"{check.state}; {check.fix}")


def test_a_run_folder_that_is_not_there_or_cannot_be_locked_is_named(tmp_path, monkeypatch):
    machine = AscendHost(tmp_path, npus=2)
    (check,) = failed(machine.host, run=tmp_path / "none")
    assert "none is not there; make it, or mount the shared storage" in f"{check.state}; {check.fix}"

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (check,) = failed(machine.host, run=shared(machine))
    assert "(nfs4): No locks available" in check.state
    assert "whose file system has locks" in check.fix
    assert list((tmp_path / "shared runs").iterdir()) == [], "nothing stays behind"


def test_a_user_without_permission_is_told_the_group(tmp_path, monkeypatch):
    machine = AscendHost(tmp_path, npus=2)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "davinci1")
    (check,) = failed(machine.host)
    assert (check.name, check.state) == ("NPU devices", "davinci1: no permission")
    assert "HwHiAiUser" in check.fix


def test_our_operators_are_missed_where_cann_has_none_in_their_place(tmp_path):
    for chip in ("910a", "910b", "910_93"):
        machine = AscendHost(tmp_path / chip, chip, 2)
        machine.environment.pop("ASCEND_CUSTOM_OPP_PATH")
        check = next(
            check for check in host_checks(machine.host, ChosenChip(chip, "--chip")) if check.name == "ascend_ops"
        )
        if chip == "910a":
            assert check.state == "ASCEND_CUSTOM_OPP_PATH names no folder vendors/pangu_sigma"
            assert check.fix.startswith("bash ascend_ops/build.sh")
        else:
            assert check.ok
            assert check.state.startswith("not installed; this chip needs none, but for stages or parallel.gather=ours")
