"""How a process ended is said in words, and ranks get their cores. What a launch does with processes: test_launch.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pangu_sigma.ranks.processes import FailedProcess

CORES = """
import os, sys
from pathlib import Path
from pangu_sigma.ranks.processes import Processes
prints = [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"]
with Processes(prints, dict(os.environ), Path(sys.argv[1]), range(2, 4), bind_cores=True) as processes:
    while processes.ranks:
        assert processes.failures() == []
"""


@pytest.mark.parametrize(
    ("status", "text"), [(3, "rank 1 ended with status 3"), (-signal.SIGKILL, "rank 1 was killed by SIGKILL")]
)
def test_an_end_is_said_in_words(status: int, text: str):
    assert str(FailedProcess("rank 1", status)) == text


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be divided")
def test_cores_are_divided_among_the_ranks_of_a_node(tmp_path):
    subprocess.run([sys.executable, "-c", CORES, tmp_path], check=True)
    found = [{int(core) for core in (tmp_path / f"worker_{rank}.log").read_text().split()} for rank in (2, 3)]
    assert found[0].isdisjoint(found[1])
    assert len(found[0]) == len(found[1]) == len(os.sched_getaffinity(0)) // 2
