"""NPUs and what drives them, on machines made of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pangu_sigma.npu.host.npus import cann, missing_for_ascend, npus


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine with two NPUs, CANN and MindSpore's plugin, as far as files tell."""
    for name in ("dev/davinci0", "dev/davinci1", "dev/davinci_manager", "dev/null", "cann/lib64/libascendcl.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    plugin = tmp_path / "mindspore/lib/plugin/libmindspore_ascend.so.2"
    plugin.parent.mkdir(parents=True)
    plugin.touch()
    return tmp_path


def missing(machine: Path, **environment: str) -> str:
    """The problem, or nothing."""
    environment = environment or {"ASCEND_HOME_PATH": str(machine / "cann")}
    found = missing_for_ascend(machine / "dev", environment, machine / "mindspore")
    return f"{found.problem}; {found.fix}" if found else ""


def test_a_whole_machine_misses_nothing(machine: Path):
    assert missing(machine) == ""
    assert npus(machine / "dev") == ["davinci0", "davinci1"]
    assert cann({"ASCEND_TOOLKIT_HOME": "", "ASCEND_HOME_PATH": "/x"}) == Path("/x")


def test_each_thing_that_is_missing_is_named_with_what_to_do(machine: Path):
    assert "no CANN: neither ASCEND_TOOLKIT_HOME nor ASCEND_HOME_PATH is set; install CANN" in missing(
        machine, HOME="/"
    )
    assert "/gone has no libascendcl.so; CANN was moved" in missing(machine, ASCEND_HOME_PATH="/gone")
    (machine / "mindspore/lib/plugin/libmindspore_ascend.so.2").unlink()
    assert "MindSpore has no plugin for Ascend" in missing(machine)
    for name in ("davinci0", "davinci1"):
        (machine / "dev" / name).unlink()
    assert "no NPU" in missing(machine)
    assert "install the Ascend driver" in missing(machine)
