"""Processes are found by their parent, and how they ended is said in words. What a launch does with them: test_launch.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pangu_sigma.ranks.processes import FailedProcess, children_of, environment_of


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (3, "rank 1 ended with status 3"),
        (-signal.SIGKILL, "rank 1 was killed by SIGKILL"),
        (None, "rank 1 ended before it was let start"),
    ],
)
def test_an_end_is_said_in_words(status: int | None, text: str):
    assert str(FailedProcess("rank 1", status)) == text


def test_a_child_is_found_with_its_variables_until_it_has_ended():
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, env=os.environ | {"MARK": "a=b"}, stdin=subprocess.PIPE) as child:
        assert child.pid in children_of(os.getpid())
        assert environment_of(child.pid)["MARK"] == "a=b"
        child.communicate(b"\n")
    assert child.pid not in children_of(os.getpid())
    assert environment_of(child.pid) == {}
