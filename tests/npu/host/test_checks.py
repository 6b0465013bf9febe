"""Hosts made of files and fake tools: a healthy one of each chip passes; of a broken one the fault is named, with what to do."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.ascend_host import AscendHost

from pangu_sigma.chips import Chip, family
from pangu_sigma.npu.host.access import Host, missing_for_ascend
from pangu_sigma.npu.host.checks import node_checks
from pangu_sigma.results import Check


def failed(host: Host, chip: Chip | None = None, run: Path | None = None) -> list[Check]:
    return [check for check in node_checks(host, chip, run) if not check.ok]


@pytest.mark.parametrize(("chip", "npus"), [("910a", 8), ("910b", 8), ("910_93", 16), ("910b4", 1)])
def test_a_healthy_host_passes_every_check(tmp_path, chip, npus):
    machine = AscendHost(tmp_path, chip, npus)
    checks = list(node_checks(machine.host, chip, tmp_path))
    assert [check for check in checks if not check.ok] == []
    names = ("NPU devices", "chip", "CANN", "MindSpore's plugin", "ascend_ops", "run folder")
    assert tuple(check.name for check in checks) == names
    actual = {check.name: check.state for check in checks}
    assert actual["chip"] == f"{npus} NPUs of the family {family(chip)}, as --chip says"
    assert actual["run folder"] == f"{tmp_path} on nfs4, mounted with locks"
    assert missing_for_ascend(machine.host) is None
    machine.remove("mindspore/lib/plugin/libmindspore_ascend.so.2")
    assert missing_for_ascend(machine.host).state.startswith("MindSpore has no plugin for Ascend")


def gone(*names: str) -> Callable[[AscendHost], None]:
    def remove(machine: AscendHost) -> None:
        for name in names:
            machine.remove(name)

    return remove


def variable(**values: str) -> Callable[[AscendHost], None]:
    return lambda machine: machine.environment.update(values)


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
    "another chip than asked for": (
        lambda m: m.pci_devices("910a"),
        "chip: 2 NPUs of the family 910a; --chip says 910b; set it to 910a, or use another machine",
    ),
    "NPUs of two kinds": (
        lambda m: m.pci_devices("910a", "910b"),
        "chip: the PCI devices name no family that is known here, or several; use NPUs of one kind: 910A, 910B or 910_93",
    ),
    # software
    "a shell without CANN": (
        lambda m: m.environment.pop("ASCEND_HOME_PATH"),
        "CANN: no CANN: neither ASCEND_TOOLKIT_HOME nor ASCEND_HOME_PATH is set; .*set_env.sh",
    ),
    "CANN without the operators of this chip": (
        lambda m: shutil.rmtree(m.cann / "opp/built-in/op_impl/ai_core/tbe/kernel/ascend910b"),
        "CANN: .*/cann-9.0.0 has no operators for ascend910b: .*; install CANN's package of operators for this chip",
    ),
    "our operators for another chip": (
        lambda m: shutil.rmtree(m.root / "opt/operators/vendors/pangu_sigma/op_impl/ai_core/tbe/kernel/ascend910b"),
        "ascend_ops: .* was not built for ascend910b; bash ascend_ops/build.sh ascend910b",
    ),
    "our operators not loaded": (
        variable(LD_LIBRARY_PATH="/usr/lib"),
        "ascend_ops: LD_LIBRARY_PATH has no .*/op_api/lib.*; .*the two export lines",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named_with_what_to_do(tmp_path, name):
    machine = AscendHost(tmp_path, npus=2)
    break_it, message = FAULTS[name]
    break_it(machine)
    (check,) = failed(machine.host, "910b")
    assert re.match(message, f"{check.name}: {check.state}; {check.fix}")


STORAGE = {
    "a disk of the host": (
        ("ext4", "rw,discard"),
        r"is on ext4, a disk of this host; put it on storage that all nodes mount",
    ),
    "NFS without locks": (
        ("nfs4", "rw,vers=4.1,nolock,addr=10.0.0.9"),
        r"is on nfs4, mounted with nolock; mount it with locks that all nodes see",
    ),
    "Lustre with locks of this host": (
        ("lustre", "rw,localflock"),
        r"is on lustre, mounted with localflock; mount it .*Lustre with flock",
    ),
}


@pytest.mark.parametrize("name", STORAGE)
def test_storage_that_nodes_do_not_share_is_named(tmp_path, name):
    machine = AscendHost(tmp_path, npus=2)
    mount, message = STORAGE[name]
    machine.mount(*mount)
    (check,) = failed(machine.host, run=tmp_path)
    assert check.name == "run folder"
    assert re.search(message, f"{check.state}; {check.fix}")


def test_a_run_folder_that_is_not_there_and_a_missing_findmnt_are_named(tmp_path):
    machine = AscendHost(tmp_path, npus=2)
    (check,) = failed(machine.host, run=tmp_path / "none")
    assert "none is not there; make it, or mount the shared storage" in f"{check.state}; {check.fix}"
    machine.remove("tools/findmnt")
    (check,) = failed(machine.host, run=tmp_path)
    assert (check.name, check.state) == ("run folder", "findmnt is not on PATH")


def test_the_file_system_of_this_machine_is_told(tmp_path):
    machine = AscendHost(tmp_path, npus=2)
    machine.environment["PATH"] = os.environ["PATH"]
    (check,) = node_checks_named(machine, "run folder", tmp_path)
    assert re.search(r" on \w+", check.state) and "unknown" not in check.state


def node_checks_named(machine: AscendHost, name: str, run: Path | None = None, chip: Chip | None = None) -> list[Check]:
    return [check for check in node_checks(machine.host, chip, run) if check.name == name]


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
        (check,) = node_checks_named(machine, "ascend_ops", chip=chip)
        if chip == "910a":
            assert check.state == "ASCEND_CUSTOM_OPP_PATH names no folder vendors/pangu_sigma"
            assert check.fix.startswith("bash ascend_ops/build.sh")
        else:
            assert check.ok
            assert check.state.startswith("not installed; needed on this chip only for stages or parallel.gather=ours")
