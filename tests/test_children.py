"""A child imports what is installed, or what an entry of PYTHONPATH names, and not what lies where the user stands."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from helpers.strangers import strangers

from pangu_sigma.children import child_environment

SAYS = "import argparse, json, sys; print(json.dumps(sys.path))"


@pytest.mark.parametrize("before", [None, "", ":", "{}:", ":{}:", "::{}"])
def test_a_child_imports_nothing_from_the_working_folder(tmp_path, monkeypatch, before):
    ran, named = strangers(tmp_path / "here"), str(tmp_path / "named")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if before is not None:
        monkeypatch.setenv("PYTHONPATH", before.format(named))
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SAYS!r}])"]
    done = subprocess.run(command, cwd=tmp_path / "here", env=child_environment(), capture_output=True, text=True)
    assert (done.stderr, ran()) == ("", [])
    path = json.loads(done.stdout)
    assert not {"", str(tmp_path / "here")} & {*path}
    assert (named in path) == (before is not None and "{}" in before)
    assert {name for name, value in child_environment().items() if os.environ.get(name) != value} <= {
        "PYTHONPATH",
        "PYTHONSAFEPATH",
    }
