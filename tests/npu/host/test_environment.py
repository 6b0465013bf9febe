"""Which chip it is, who says so, and what is set for it; a value that is set already stays."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers.ascend_host import AscendHost

from pangu_sigma.chips import CHIP_DATA, CHIP_NAMES
from pangu_sigma.npu.host import environment
from pangu_sigma.npu.host.environment import (
    UnknownChip,
    chip_environment,
    chip_in_environment,
    devices_of,
    known_chip,
    main,
)
from pangu_sigma.ranks.processes import LaunchError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("chip", CHIP_NAMES)
def test_overflow_and_determinism_are_the_chip_s(chip):
    actual = chip_environment(chip)
    assert actual["MS_ASCEND_CHECK_OVERFLOW_MODE"] == (
        "SATURATION_MODE" if CHIP_DATA[chip].saturates else "INFNAN_MODE"
    )
    assert ("HCCL_DETERMINISTIC" in actual) == (chip != "910a")
    assert int(actual["HCCL_EXEC_TIMEOUT"]) % 68 == 0
    assert 120 <= int(actual["HCCL_CONNECT_TIMEOUT"]) <= 7200
    assert Path(actual["MS_COMPILER_CACHE_PATH"]).is_relative_to(tempfile.gettempdir()), "a disk of the host"


def test_a_chip_is_known_by_its_name_only():
    assert chip_in_environment({}) is None
    assert chip_in_environment({"PANGU_SIGMA_CHIP": "910b2"}).name == "910b2"
    with pytest.raises(UnknownChip, match="PANGU_SIGMA_CHIP=910B2 is not a chip: 910a, 910b, "):
        chip_in_environment({"PANGU_SIGMA_CHIP": "910B2"})
    assert known_chip("910_93", "x") == "910_93"


def test_the_argument_wins_then_the_variable_then_the_pci_devices(tmp_path, capsys):
    machine = AscendHost(tmp_path, "910b", 1)
    for arguments, variable, chip, by in (
        (["910a"], "910_93", "910a", "the argument"),
        ([], "910_93", "910_93", "PANGU_SIGMA_CHIP"),
        ([""], "", "910b", "the PCI devices"),
    ):
        machine.environment |= {"PANGU_SIGMA_CHIP": variable, "HCCL_BUFFSIZE": "400"}
        printed = main(arguments, machine.host).splitlines()
        assert f"export PANGU_SIGMA_CHIP={chip}" in printed
        assert "export HCCL_CONNECT_TIMEOUT=1800" in printed
        assert not [line for line in printed if "HCCL_BUFFSIZE" in line], "it is set already"
        assert f"chip {chip} ({CHIP_DATA[chip].title}), said by {by}" in capsys.readouterr().err
    machine.pci_devices("910a", "910b")
    assert "export PANGU_SIGMA_CHIP=910a" in main([], machine.host)
    assert "said by nobody" in capsys.readouterr().err


@pytest.mark.parametrize("strict", ["set -euo pipefail", "true"])
def test_ascend_env_sh_sets_it_for_a_shell_that_stands_anywhere(tmp_path, strict):
    machine = AscendHost(tmp_path / "host", "910b", 1)
    machine.write(
        "usr/local/Ascend/cann-9.0.0/set_env.sh", 'export FROM_CANN="$UNSET"yes; export PYTHONPATH=/cann:$UNSET'
    )
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    variables = {"PATH": path, "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "HCCL_EXEC_TIMEOUT": "680"}
    variables["ASCEND_TOOLKIT_HOME"] = str(machine.cann)
    script = os.path.relpath(ROOT / "run_scripts/ascend_env.sh", tmp_path)
    code = f"{strict}; source {shlex.quote(script)} 910b3; env"
    done = subprocess.run(["bash", "-c", code], env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = set(done.stdout.splitlines())
    assert {"HCCL_EXEC_TIMEOUT=680", "HCCL_CONNECT_TIMEOUT=1800", "MS_ASCEND_CHECK_OVERFLOW_MODE=INFNAN_MODE"} <= lines
    assert {"PANGU_SIGMA_CHIP=910b3", "FROM_CANN=yes", "PYTHONPATH=/cann"} <= lines, "and no empty entry"
    assert "chip 910b3 (Ascend 910B3), said by the argument" in done.stderr
    code = f"source {shlex.quote(script)} 911 || echo refused"
    done = subprocess.run(["bash", "-c", code], env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, "chip=911 is not a chip" in done.stderr) == ("refused\n", True)


def test_the_page_and_the_container_file_name_what_is_there():
    page = (ROOT / "docs/how_to/cluster.md").read_text(encoding="utf-8")
    container = (ROOT / "run_scripts/ascend.Dockerfile").read_text(encoding="utf-8")
    files = set(re.findall(r"(?:run_scripts|ascend_ops)/[\w.]+\.\w+", page + container))
    files |= {name for line in re.findall(r"^COPY (.*) \S+$", container, re.MULTILINE) for name in line.split()}
    assert len(files) > 10
    assert sorted(name for name in files if not (ROOT / name).exists()) == []
    assert len(page.splitlines()) <= 200


def test_a_host_of_another_family_is_refused_with_the_chip_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    machine = AscendHost(tmp_path, "910b", 1)
    monkeypatch.setattr(environment, "Host", lambda: machine.host)
    devices_of("910b3").check(1)
    with pytest.raises(LaunchError, match="has 1 NPUs and is to run 2 ranks"):
        devices_of("910b").check(2)
    with pytest.raises(LaunchError, match=r"NPUs of the family 910b; parallel\.chip says 910a; set it to 910b, or use"):
        devices_of("910a").check(1)
