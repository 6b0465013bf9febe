"""What a machine with and without NPUs is asked, and which chip it must have."""

from __future__ import annotations

from pathlib import Path

from helpers.ascend_host import AscendHost

from pangu_sigma.checkpoint.model_files import write_config
from pangu_sigma.config_file import config_path, load_config
from pangu_sigma.npu.host.access import Host
from pangu_sigma.npu.host.checks import node_checks, npus_if_any
from pangu_sigma.results import Check


def test_a_machine_without_an_npu_passes(tmp_path: Path):
    assert npus_if_any(Host(tmp_path, {})) == Check("Ascend", True, "no device, no CANN; runs use the CPU")
    cann = npus_if_any(Host(tmp_path, {"ASCEND_HOME_PATH": "/cann"}))
    assert (cann.ok, cann.state) == (True, "no device, CANN in /cann; runs use the CPU")
    other = npus_if_any(Host(tmp_path, {"ASCEND_TOOLKIT_HOME": "", "ASCEND_HOME_PATH": "/cann"}))
    assert other == cann


def test_devices_pass_with_all_they_need_and_else_say_what_to_do(tmp_path: Path):
    machine = AscendHost(tmp_path, npus=8)
    assert npus_if_any(machine.host) == Check("Ascend", True, f"8 devices, CANN in {machine.cann}")
    machine.remove("mindspore/lib/plugin/libmindspore_ascend.so.2")
    check = npus_if_any(machine.host)
    assert (check.ok, "MindSpore has no plugin" in check.state) == (False, True)
    assert check.fix.startswith("install the wheel")
    machine.environment.clear()
    check = npus_if_any(machine.host)
    assert not check.ok and "set_env.sh" in check.fix
    assert check.state.startswith("8 devices, no CANN: no CANN: neither ASCEND_TOOLKIT_HOME")


def chip_check(machine: AscendHost, chip: str | None = None, run: Path | None = None) -> Check:
    return next(check for check in node_checks(machine.host, chip, run) if check.name == "chip")


def test_the_chip_is_asked_for_by_option_or_environment_and_by_the_run(tmp_path: Path):
    machine, run = AscendHost(tmp_path / "host", "910b", 1), tmp_path / "run"
    run.mkdir()
    for chip in ("910a", "910b3"):
        write_config(run, load_config(config_path("sigma_tiny"), [f"parallel.chip={chip}"]), "run")
        check = chip_check(machine, run=run)
        assert (check.ok, f"parallel.chip of {run} says" in check.state) == (chip == "910b3", True)
    machine.environment["PANGU_SIGMA_CHIP"] = "910_93"
    assert "PANGU_SIGMA_CHIP says 910_93" in chip_check(machine, run=run).state
    check = chip_check(machine, "910b", run)
    assert check == Check("chip", True, "1 NPUs of the family 910b, as --chip says")
    write_config(run, load_config(config_path("sigma_tiny"), ["parallel.chip=910a"]), "run")
    check = chip_check(machine, "910b", run)
    assert (check.ok, f"parallel.chip of {run} says 910a" in check.state) == (False, True)
    assert chip_check(machine, "910b1").ok, "another bin"
