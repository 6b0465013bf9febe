"""The doctor finds what is wrong and says what to do about it."""

from __future__ import annotations

import importlib.metadata
import shutil
from functools import partial
from pathlib import Path

import pytest
from helpers.ascend_host import AscendHost

from ascend_ops.errors import BuildError
from pangu_sigma import machine
from pangu_sigma.machine import Check, format_checks, run_checks
from pangu_sigma.npu.host.checks import node_checks, npus_if_any


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_this_machine_passes(graph_mode):
    checks = run_checks(npus_if_any)
    assert not [check for check in checks if not check.ok]
    found = by_name(checks)
    assert {"mindspore", "numpy", "g++", "CPU kernels", "Ascend"} <= found.keys()
    assert "(wants ==2.9.0)" in found["mindspore"].state


def test_a_wrong_or_missing_package_is_named_with_its_fix(monkeypatch: pytest.MonkeyPatch):
    """A machine that only trains needs no packages of tests."""
    required = [
        "numpy<1.0",
        "no-such-package>=2",
        "pydantic",
        "other; python_version<'3'",
        "pytest>=8; extra == 'test'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: required)
    checks = list(machine._requirements())
    assert [check.name for check in checks] == ["numpy", "no-such-package", "pydantic"]
    assert [check.ok for check in checks] == [False, False, True]
    assert checks[0].fix == "pip install 'numpy<1.0'"
    assert checks[1].state == "not installed (wants >=2)"


def test_a_missing_compiler_is_a_failed_check(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert (machine._compiler().ok, "install g++" in machine._compiler().fix) == (False, True)


def test_a_kernel_that_fails_or_is_wrong_is_a_failed_check(graph_mode, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ascend_ops.grouped_ffn.grouped_ffn_oracle", lambda *inputs: 0.5)
    (wrong,) = machine._results(machine._kernels)
    monkeypatch.setattr("ascend_ops.grouped_ffn.GroupedFFN", lambda: raised(BuildError("g++ could not compile")))
    (broken,) = machine._results(machine._kernels)
    assert (wrong.ok, broken.ok, wrong.fix) == (False, False, broken.fix)
    assert (broken.state, "PANGU_SIGMA_CACHE" in broken.fix) == ("BuildError: g++ could not compile", True)


def raised(error: Exception) -> None:
    raise error


def test_the_table_shows_every_check_and_the_fix_of_a_failed_one():
    text = format_checks([Check("a", True, "1"), Check("long name", False, "2", "do this")])
    assert text.splitlines() == [
        "ok    a          1",
        "FAIL  long name  2",
        "                 fix: do this",
        "1 of 2 checks failed",
    ]
    assert format_checks([Check("a", True, "1")]).endswith("all 1 checks passed")


def test_a_demanded_host_is_looked_at_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "_kernels", lambda: Check("CPU kernels", True, ""))
    host = AscendHost(tmp_path, "910b", 1)
    names = [check.name for check in run_checks(partial(node_checks, host.host))]
    assert {"mindspore", "g++", "NPU devices", "CANN"} <= set(names)
    assert "Ascend" not in names
    host.environment["PANGU_SIGMA_CHIP"] = "911"
    last = run_checks(partial(node_checks, host.host))[-1]
    assert last == Check("host", False, last.state, "mend what the message names")
    assert "PANGU_SIGMA_CHIP=911 is not a chip: 910a, 910b" in last.state
