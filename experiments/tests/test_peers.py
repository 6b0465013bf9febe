"""Workers answer once for each step, and say so when they cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.peers import PACKAGES, Worker, install, peers_python, script_of

COUNTS = """
import sys
print('{"ready": true}', flush=True)
for step, _ in enumerate(sys.stdin):
    print('{"step": %d}' % step, flush=True)
"""


def worker(folder: Path, script: str) -> Worker:
    path = folder / "script.py"
    path.write_text(script)
    return Worker(script_of(Path(sys.executable), path))


def test_one_answer_for_each_step(tmp_path: Path):
    with worker(tmp_path, COUNTS) as counting:
        assert counting.started == {"ready": True}
        assert [counting.step() for _ in range(3)] == [{"step": 0}, {"step": 1}, {"step": 2}]


@pytest.mark.parametrize("script", ["raise SystemExit(7)", "print('{}', flush=True); raise SystemExit(7)"])
def test_a_worker_that_ends_is_an_error_with_its_status(tmp_path: Path, script: str):
    with pytest.raises(RuntimeError, match="status 7"):
        worker(tmp_path, script).step()


def test_a_missing_environment_says_what_installs_it(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setenv("PANGU_SIGMA_PEERS", "/absent/python")
    assert peers_python() is None
    assert "python -m experiments.peers" in caplog.text


def test_a_worker_has_the_environment_that_this_process_was_started_with(tmp_path: Path):
    """MindSpore's library path and our OpenMP settings are in ours, and would slow torch down."""
    code = "import experiments.peers as p, sys; print(p.Worker([sys.executable, sys.argv[1]]).started)"
    script = tmp_path / "script.py"
    script.write_text("import json, os; print(json.dumps(os.environ.get('OMP_WAIT_POLICY')), flush=True)")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", code, str(script)]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "None\n"


def test_the_environment_is_made_once_for_the_same_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    for _ in range(2):
        install(tmp_path)
    assert [command[0] for command in commands] == [sys.executable, *2 * [str(tmp_path / "bin" / "pip")]]
    assert commands[1][-len(PACKAGES) :] == list(PACKAGES)
    assert commands[2][-1] == "check"
    (tmp_path / "installed").write_text("torch>=1")
    install(tmp_path)
    assert len(commands) == 6
