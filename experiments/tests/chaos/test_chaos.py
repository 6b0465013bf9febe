"""The table of faults counts what happened, and goes on where it was killed. `python -m experiments.chaos` makes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.chaos import __main__ as chaos
from experiments.chaos import ledger as ledgers
from experiments.chaos.cases import Case, FaultRow
from experiments.chaos.forked import Forked
from experiments.chaos.ledger import CaseResult, Ledger
from experiments.chaos.rows import ROWS


def row(*cases: Case) -> FaultRow:
    return FaultRow("R0-test", "must hold", lambda work, full: cases if full else cases[:1])


def holds(folder: Path) -> str:
    assert list(folder.iterdir()) == [], "a case gets an empty folder"
    return "3 files"


def fails(folder: Path) -> str:
    raise AssertionError("it was lost")


def breaks(folder: Path) -> str:
    raise OSError("no such disk")


@pytest.mark.parametrize(
    ("case", "status", "said"),
    [(holds, 0, "1/1"), (fails, 1, "R0-test one: it was lost"), (breaks, 1, "R0-test one: OSError: no such disk")],
)
def test_only_what_held_counts(tmp_path, capsys, case, status, said):
    only = row(Case("one", case))
    chaos._run_row(only, tmp_path, full=True)
    assert chaos._table([only], tmp_path, True, 1.0) == status
    assert said in capsys.readouterr().out


def test_a_case_that_was_not_done_does_not_hold(tmp_path, capsys):
    assert chaos._table([row(Case("one", holds))], tmp_path, True, 1.0) == 1
    assert "R0-test one: not done" in capsys.readouterr().out


def test_a_case_that_ends_the_program_is_counted_as_such_and_the_others_are_kept(tmp_path, capsys):
    def ends(folder: Path) -> str:
        raise SystemExit("killed")

    both = row(Case("one", holds), Case("two", ends))
    with pytest.raises(SystemExit):
        chaos._run_row(both, tmp_path, full=True)
    assert chaos._table([both], tmp_path, True, 1.0) == 1
    assert "1/2" in (said := capsys.readouterr().out)
    assert "R0-test two: it ended the program" in said


def test_the_page_of_results_has_every_row_in_the_words_of_the_table():
    page = (Path(__file__).parents[3] / "docs/experiments/faults.md").read_text(encoding="utf-8")
    lines = [f"| {row.name} | {row.must} | " for row in ROWS.values()]
    assert [line for line in lines if page.count(line) != 1] == []


def test_finished_cases_are_not_done_again_and_failed_ones_are(tmp_path):
    done: list[str] = []

    def noted(name: str, why: str) -> Case:
        def check(folder: Path) -> str:
            done.append(name)
            assert not why, why
            return ""

        return Case(name, check)

    both = row(noted("one", ""), noted("two", "lost"))
    for _ in range(2):
        chaos._run_row(both, tmp_path, full=True)
    assert done == ["one", "two", "two"]


def test_a_line_that_a_kill_cut_off_costs_that_case_only(tmp_path):
    ledger = Ledger(tmp_path, "R0-test")
    ledger.add(CaseResult("R0-test", "one", 1.0, "", ""))
    with ledger._file.open("a") as file:
        file.write('{"row": "R0-test", "case": "two", "sec')
    ledger.add(CaseResult("R0-test", "three", 1.0, "", ""))
    assert list(ledger.results()) == ["one", "three"]


def test_results_belong_to_the_sources_that_gave_them(tmp_path, monkeypatch):
    Ledger(tmp_path, "R0-test").add(CaseResult("R0-test", "one", 1.0, "", ""))
    monkeypatch.setattr(ledgers, "sources_hash", lambda: "other")
    assert Ledger(tmp_path, "R0-test").results() == {}


WRITES = """
import sys
for i in range(6):
    try:
        open(f"{sys.argv[1]}/{i}", "w").write("x")
    except OSError as error:
        print(i, error.errno)
"""


def test_the_disk_that_fails_fails_where_it_is_told(tmp_path):
    source = Path(chaos.__file__).with_name("failing.c")
    layer = tmp_path / "failing.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(layer), str(source), "-ldl"], check=True)
    found = {}
    for name in ("ENOSPC", "EIO"):
        folder = tmp_path / name
        folder.mkdir()
        extra = {"LD_PRELOAD": str(layer), "FAILING_BELOW": str(folder), "FAILING_AT": "5", "FAILING_WITH": name}
        done = subprocess.run(
            [sys.executable, "-c", WRITES, str(folder)],
            env=os.environ | extra,
            capture_output=True,
            text=True,
            check=True,
        )
        found[name] = done.stdout.split("\n")[:-1]
    assert found == {"ENOSPC": ["2 28", "3 28", "4 28", "5 28"], "EIO": ["2 5"]}


def test_a_fork_is_a_process_of_its_own_that_never_comes_back(tmp_path):
    def says_and_fails() -> int:
        print("said by", os.environ["WHO"])
        return 3

    def waits() -> int:
        time.sleep(600)
        return 0

    log = tmp_path / "log"
    assert Forked(says_and_fails, {"WHO": "the fork"}, log).wait(60) == 3
    assert log.read_text() == "said by the fork\n"
    assert "WHO" not in os.environ
    killed = Forked(waits, {}, log)
    with pytest.raises(subprocess.TimeoutExpired):
        killed.wait(0.2)
    killed.kill()
    assert killed.wait(60) == -signal.SIGKILL
