"""A launch is refused on a host of other NPUs, with the chip to set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.ascend_host import AscendHost

from pangu_sigma.npu.host.environment import devices_of
from pangu_sigma.ranks.processes import LaunchError


def test_a_host_of_another_family_is_refused_with_the_chip_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", f"{AscendHost(tmp_path, '910b', 1).tools}:{os.environ['PATH']}")
    with pytest.raises(
        LaunchError, match=r"^parallel\.chip=910a: .* has Ascend 910B3 .*; use parallel\.chip=910b3, or"
    ):
        devices_of("910a").check(1)
