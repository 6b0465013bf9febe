"""Processes of a launch in a process that has children of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

from experiments.chaos.launched import eventually
from pangu_sigma.ranks.processes import FailedProcess, Processes

ESCAPES = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)"


def test_children_of_the_caller_and_their_descendants_are_left_alone(tmp_path: Path):
    """A helper of `msrun` that left its session is killed; a process that the caller had or starts meanwhile, in a session of its
    own, or that such a process leaves behind, is not, and its exit status is the caller's."""
    sleeper, failing = subprocess.Popen(["sleep", "600"]), subprocess.Popen(["sh", "-c", "exit 3"])
    command = ["sh", "-c", "read line; sleep 600 > /dev/null & echo $!"]
    gate, logs, pipe = tmp_path / "gate", tmp_path, subprocess.PIPE
    with Processes([sys.executable, "-c", ESCAPES], dict(os.environ), gate, logs, range(1)) as processes:
        server = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        orphan = psutil.Process(int(server.communicate("begin\n")[0]))
        assert eventually(processes.failures) == [FailedProcess("rank 0", None)]
        escaped = int(processes.log_path("msrun").read_text())
        assert eventually(lambda: orphan.ppid() == psutil.Process(escaped).ppid() == os.getpid())
    try:
        assert not psutil.pid_exists(escaped)
        assert failing.wait() == 3 and server.returncode == 0
        assert sleeper.poll() is None and orphan.status() != psutil.STATUS_ZOMBIE
    finally:
        for pid in (sleeper.pid, orphan.pid):
            os.kill(pid, 9)
            os.waitpid(pid, 0)
