"""Processes are found by their parent. What a launch does with them: test_launch.py."""

from __future__ import annotations

import os
import subprocess
import sys

from pangu_sigma.ranks.processes import children_of, environment_of


def test_a_child_is_found_with_its_variables_until_it_has_ended():
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, env=os.environ | {"MARK": "a=b"}, stdin=subprocess.PIPE) as child:
        assert child.pid in children_of(os.getpid())
        assert environment_of(child.pid)["MARK"] == "a=b"
        child.communicate(b"\n")
    assert child.pid not in children_of(os.getpid())
    assert environment_of(child.pid) == {}
