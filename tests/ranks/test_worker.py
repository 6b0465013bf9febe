"""A worker becomes the rank's command, on its share of the cores, if its launcher is there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be divided")
def test_cores_are_divided_among_the_ranks_of_a_node(tmp_path):
    gate = tmp_path / "gate"
    gate.write_text(str(os.getpid()))
    actual = []
    for device in ("0", "1"):
        command = [sys.executable, "-m", "pangu_sigma.ranks.worker", "--bind-cores", "2", str(gate)]
        prints = [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"]
        variables = os.environ | {"MS_ROLE": "MS_WORKER", "DEVICE_ID": device}
        done = subprocess.run(command + prints, env=variables, capture_output=True, text=True, check=True)
        actual.append({int(core) for core in done.stdout.split()})
    assert actual[0].isdisjoint(actual[1])
    assert len(actual[0]) == len(actual[1]) == len(os.sched_getaffinity(0)) // 2


def test_a_rank_whose_launcher_is_gone_does_not_start(tmp_path):
    gate = tmp_path / "gate"
    gate.write_text("1")
    command = [sys.executable, "-m", "pangu_sigma.ranks.worker", str(gate), "touch", str(tmp_path / "started")]
    done = subprocess.run(command, env=os.environ | {"MS_ROLE": "MS_WORKER"}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "launcher 1 is gone" in done.stderr
    assert not (tmp_path / "started").exists()
