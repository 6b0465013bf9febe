"""Workers answer once for each step, and say so when they cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pangu_sigma.bench.peer import Worker, peers_python

COUNTS = """
import sys
print('{"ready": true}', flush=True)
for step, _ in enumerate(sys.stdin):
    print('{"step": %d}' % step, flush=True)
"""


def worker(folder: Path, script: str) -> Worker:
    path = folder / "script.py"
    path.write_text(script)
    return Worker(Path(sys.executable), path)


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
    assert "bash run_scripts/peers.sh" in caplog.text


def test_a_worker_has_the_environment_that_this_process_was_started_with(tmp_path: Path):
    """MindSpore's library path and our OpenMP settings are in ours, and would slow torch down."""
    code = (
        "import pangu_sigma.bench.peer as p, sys; print(p.Worker(p.Path(sys.executable), p.Path(sys.argv[1])).started)"
    )
    script = tmp_path / "script.py"
    script.write_text("import json, os; print(json.dumps(os.environ.get('OMP_WAIT_POLICY')), flush=True)")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", code, str(script)]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "None\n"
