"""A case runs in a process of its own, once; what was stopped or failed runs again."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from experiments.cases import CASES_FILE, CaseError, Cases


def test_a_case_that_ended_is_kept_and_the_others_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    text, folder = tmp_path / "text", tmp_path / "runs" / "c"
    text.write_text("a")
    for settings in ({"steps": 2, "set": ("a=b",)}, {"steps": 2, "set": ["a=b"]}):
        cases = Cases(folder, settings, 2)
        cases.run("first", shutil.copy, text, folder / "first")
        cases.run("second", shutil.copy, text, folder / "second")
        text.write_text("b")
    assert [(folder / name).read_text() for name in ("first", "second")] == ["a", "a"]
    assert [record.message for record in caplog.records] == ["== 1 of 2: first", "== 2 of 2: second"]
    found = json.loads((folder / CASES_FILE).read_bytes())["seconds"]
    assert list(found) == ["first", "second"]
    assert all(cpu > 0 and 0 < passed < 60 for passed, cpu in found.values())
    assert cases.summary() == "2 cases took 0 minutes, 0 of them CPU"


def note_cores(folder: Path, name: str) -> bool:
    """Work of a case: write its cores, and wait until the other one has written its own."""
    (folder / name).write_text(str(sorted(os.sched_getaffinity(0))))
    while len(list(folder.glob("case_*"))) < 2:
        time.sleep(0.01)
    return True


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_two_cases_run_at_the_same_time_on_cores_of_their_own(tmp_path: Path):
    cores = os.sched_getaffinity(0)
    cases = Cases(tmp_path, {}, 2)
    cases.run_all({name: (note_cores, tmp_path, name) for name in ("case_a", "case_b")}, jobs=2)
    shares = [set(json.loads((tmp_path / name).read_text())) for name in ("case_a", "case_b")]
    assert shares[0] | shares[1] == cores
    assert not shares[0] & shares[1]
    assert set(cases.seconds) == {"case_a", "case_b"}
    assert os.sched_getaffinity(0) == cores


def test_after_a_failure_no_other_case_begins(tmp_path: Path):
    cases = Cases(tmp_path, {}, 3)
    works = {"good": (os.path.exists, tmp_path), "bad": (sys.exit, 7), "late": (os.path.exists, tmp_path)}
    with pytest.raises(CaseError, match="bad ended with status 7"):
        cases.run_all(works)
    assert list(cases.seconds) == ["good"]
    with pytest.raises(CaseError, match="--jobs 0: give 1 to"):
        cases.run_all(works, jobs=0)


def test_what_was_stopped_or_failed_is_an_error_and_runs_again(tmp_path: Path, capfd: pytest.CaptureFixture):
    cases = Cases(tmp_path, {}, 1)
    with pytest.raises(CaseError, match="a was stopped before its end; the same command goes on"):
        cases.run("a", os.path.exists, tmp_path / "there")
    with pytest.raises(CaseError, match="b ended with status 7"):
        cases.run("b", sys.exit, 7)
    with pytest.raises(CaseError, match="c ended with status 2"):
        cases.run("c", Cases, tmp_path, {"other": 1}, 1)
    assert "error: " in capfd.readouterr().err, "what the user can mend is said in one message"
    (tmp_path / "there").touch()
    cases = Cases(tmp_path, {}, 1)
    assert cases.seconds == {}
    cases.run("a", os.path.exists, tmp_path / "there")
    assert list(cases.seconds) == ["a"]


def test_a_folder_of_other_settings_is_refused(tmp_path: Path):
    Cases(tmp_path, {"steps": 2}, 1)
    with pytest.raises(CaseError, match=r"begun with other settings: .*'steps': 2.*, not .*'steps': 3.*--folder"):
        Cases(tmp_path, {"steps": 3}, 1)
