"""A worker becomes the rank's command if its launcher is there."""

from __future__ import annotations

import os
import subprocess
import sys


def test_a_rank_whose_launcher_is_gone_does_not_start(tmp_path):
    gate = tmp_path / "gate"
    gate.write_text("1")
    command = [sys.executable, "-m", "pangu_sigma.ranks.worker", str(gate), "touch", str(tmp_path / "started")]
    done = subprocess.run(command, env=os.environ | {"MS_ROLE": "MS_WORKER"}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "launcher 1 is gone" in done.stderr
    assert not (tmp_path / "started").exists()
